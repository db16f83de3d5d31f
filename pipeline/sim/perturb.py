"""Noise on what an expert does, so that its demonstrations show how to come back: DART (Laskey et al., CoRL 2017).

The expert names an action, another one is executed, and the demonstration keeps the expert's: a policy that learns
from it has seen the states that its own mistakes lead to, with the way back from them. Two kinds of noise act on the
hand's position and yaw, never on the gripper, both in proportion to one `scale`:

    jitter    gaussian, new in every step, along each axis a quarter of how far the expert goes, about z a quarter of
              how far it turns: none where it stays, so that it comes to its targets exactly
    burst     now and then (with a chance of 7 % in each step) for 2 to 7 steps a push the same way, by 5 mm to 2.5 cm a
              step, with a gaussian turn of 11 degrees a step

Under noise a reach lasts longer: the expert stays at its end, and shows how to come back to it (`expert`'s `linger`).
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.sim.geometry import Floats
from pipeline.sim.world import ACTION_DIM

_JITTER = 0.25  # of what is commanded, standard deviation
_BURST_CHANCE = 0.07  # that one begins, in each step
_BURST_STEPS = (2, 7)
_BURST_REACH = (0.1, 0.5)  # of an action, in each step
_BURST_YAW = 0.4  # of an action in each step, standard deviation
_BURST_VERTICAL = 0.7  # of directions up and down, against those along the table


class Perturber:
    """Gives what is executed in place of an expert's actions; one for an episode. `scale` 1 is described above."""

    def __init__(self, scale: float, rng: np.random.Generator) -> None:
        assert np.isfinite(scale) and scale >= 0, scale
        self._scale, self._rng = scale, rng
        self._left = 0
        self._way: Floats = np.zeros(3)

    def __call__(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """The action f4 [7] that is executed where the expert wants `action` f4 [7]."""
        if not self._scale:
            return action
        far = float(np.linalg.norm(action[:3]))
        noise = _JITTER * np.array([far, far, far, abs(float(action[5]))]) * self._rng.normal(size=4)
        if self._left == 0 and self._rng.random() < _BURST_CHANCE:
            self._begin_burst()
        if self._left:
            self._left -= 1
            reach = self._rng.uniform(*_BURST_REACH)
            noise = noise + np.array([*(reach * self._way), _BURST_YAW * self._rng.normal()])
        out = np.zeros(ACTION_DIM)
        out[[0, 1, 2, 5]] = self._scale * noise
        return np.asarray(np.clip(action + out, -1.0, 1.0), dtype=np.float32)

    def _begin_burst(self) -> None:
        self._left = int(self._rng.integers(_BURST_STEPS[0], _BURST_STEPS[1] + 1))
        way: Floats = self._rng.normal(size=3) * [1.0, 1.0, _BURST_VERTICAL]
        self._way = way / np.linalg.norm(way)
