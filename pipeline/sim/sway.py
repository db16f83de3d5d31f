"""Smooth motion that stays where it is: sums of sine waves, a few for each axis."""

from dataclasses import dataclass

import numpy as np

from pipeline.sim.geometry import Floats


@dataclass(frozen=True, kw_only=True)
class Wave:
    """amplitude * sin(2 pi time / period + phase); seconds and radians, the amplitude in the unit of what moves."""

    amplitude: float
    period: float
    phase: float

    def at(self, time: float) -> float:
        """The value at `time`, seconds."""
        return self.amplitude * float(np.sin(2 * np.pi * time / self.period + self.phase))

    @classmethod
    def paced(cls, change: float, *, period: float, phase: float) -> "Wave":
        """The wave whose value changes by `change` and not more within a second."""
        return cls(amplitude=change / (2 * np.sin(np.pi / max(period, 2.0))), period=period, phase=phase)


Sway = tuple[tuple[Wave, ...], tuple[Wave, ...], tuple[Wave, ...]]
"""The waves of three axes."""

REST: Sway = ((), (), ())


def sway_at(sway: Sway, time: float) -> Floats:
    """The sums [3] of the waves of each axis at `time`, seconds."""
    return np.array([sum(wave.at(time) for wave in waves) for waves in sway], dtype=np.float64)
