"""What stands in for a trained policy in tests: eyes and policies that follow a rule."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import BadClip
from pipeline.evaluate.policy.environment import Observation
from pipeline.evaluate.policy.trials import Look


@dataclass(frozen=True)
class StateEyes:
    """Passes the key, the state and the mean colours on."""

    def __call__(self) -> "_PassOn":
        return _PassOn()


class _PassOn:
    def __call__(self, observation: Observation, key: str) -> Any:
        return key, observation.state, {name: float(view.rgb.mean()) for name, view in observation.views.items()}


@dataclass(frozen=True)
class DeadlyEyes:
    """Kills its process at the `look`-th look, as the kernel does when memory runs out; or hangs."""

    look: int
    hang: bool = False

    def __call__(self) -> "_Deadly":
        return _Deadly(self)


class _Deadly:
    def __init__(self, maker: DeadlyEyes) -> None:
        self._maker, self._looks = maker, 0

    def __call__(self, observation: Observation, key: str) -> Any:
        self._looks += 1
        if self._looks == self._maker.look:
            if self._maker.hang:
                time.sleep(300)
            os.kill(os.getpid(), signal.SIGKILL)
        return key, observation.state, {}


@dataclass(frozen=True)
class DimEyes:
    """Cannot use a moment after `step` steps."""

    step: int

    def __call__(self) -> "_Dim":
        return _Dim(self.step)


class _Dim:
    def __init__(self, step: int) -> None:
        self._step = step

    def __call__(self, observation: Observation, key: str) -> Any:
        if int(key.rpartition("-")[2]) >= self._step:
            raise BadClip(key, "frame 0 has 3 usable points")
        return key, observation.state, {}


class Downwards:
    """Goes down, faster where the state says high; keeps what it was asked."""

    horizon = 4

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.keys: list[str] = []

    def act(self, looks: Sequence[Look]) -> Array:
        self.batches.append([(look.trial.number, look.step) for look in looks])
        self.keys += [look.seen[0] for look in looks]
        chunks = np.zeros((len(looks), self.horizon, 7), dtype=np.float32)
        chunks[:, :, 2] = [[-float(look.seen[1][2])] for look in looks]
        return chunks


class Broken:
    """Gives NaN."""

    horizon = 2

    def act(self, looks: Sequence[Look]) -> Array:
        return np.full((len(looks), self.horizon, 7), np.nan, dtype=np.float32)
