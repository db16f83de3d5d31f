"""Noise on what an expert does, so that its demonstrations show how to come back: DART (Laskey et al., CoRL 2017).

The expert names an action, another one is executed, and the demonstration keeps the expert's: a policy that learns
from it has seen the states that its own mistakes lead to, with the way back from them. Two kinds of noise act on the
hand's position and yaw, never on the gripper, both in proportion to one `scale`:

    jitter    gaussian, new in every step: 3 mm along each axis and 1.5 degrees
    burst     now and then (every 2.5 s on the mean) a push the same way for 2 to 5 steps: 1 to 4 cm, up to 12 degrees
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.sim.geometry import Floats
from pipeline.sim.world import ACTION_DIM, POSITION_SCALE, ROTATION_SCALE

_JITTER = 0.003  # metres along each axis, standard deviation
_JITTER_YAW = 0.026  # radians, standard deviation
_BURST_CHANCE = 0.02  # that one begins, in each step
_BURST_STEPS = (2, 5)
_BURST_REACH = (0.01, 0.04)  # metres over the whole burst
_BURST_YAW = 0.21  # radians over the whole burst, at most


class Perturber:
    """Gives what is executed in place of an expert's actions; one for an episode. `scale` 1 is described above."""

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        assert np.isfinite(scale) and scale >= 0, scale
        self._scale, self._rng = scale, rng
        self._left = 0
        self._push = np.zeros(4)

    @property
    def slack(self) -> dict[str, float]:
        """How near to a target the noise lets the hand come, as `pipeline.sim.experts.expert` takes it."""
        return {"slack": 2 * self._scale * _JITTER, "slack_yaw": 2 * self._scale * _JITTER_YAW}

    def __call__(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """The action f4 [7] that is executed where the expert wants `action` f4 [7]."""
        if not self._scale:
            return action
        noise = self._rng.normal(0.0, [_JITTER, _JITTER, _JITTER, _JITTER_YAW])
        if self._left == 0 and self._rng.random() < _BURST_CHANCE:
            self._begin_burst()
        if self._left:
            self._left -= 1
            noise = noise + self._push
        out = np.zeros(ACTION_DIM)
        out[:3] = self._scale * noise[:3] / POSITION_SCALE
        out[5] = self._scale * noise[3] / ROTATION_SCALE
        return np.asarray(np.clip(action + out, -1.0, 1.0), dtype=np.float32)

    def _begin_burst(self) -> None:
        self._left = int(self._rng.integers(_BURST_STEPS[0], _BURST_STEPS[1] + 1))
        way: Floats = self._rng.normal(size=3)
        reach = self._rng.uniform(*_BURST_REACH) * way / np.linalg.norm(way)
        self._push = np.array([*reach, self._rng.uniform(-_BURST_YAW, _BURST_YAW)]) / self._left
