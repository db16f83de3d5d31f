"""Policies to compare with: random actions."""

from collections.abc import Sequence

import numpy as np

from data_specs.arrays import Array
from pipeline.evaluate.policy.environment import EnvironmentSpec
from pipeline.evaluate.policy.trials import Look

HORIZON = 10


class RandomPolicy:
    """Uniform actions within the environment's bounds, of each episode and step its own."""

    horizon = HORIZON

    def __init__(self, spec: EnvironmentSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed

    def act(self, looks: Sequence[Look]) -> Array:
        """Chunks f4 [B,10,A]."""
        return np.stack([self._chunk(look) for look in looks])

    def _chunk(self, look: Look) -> Array:
        rng = np.random.default_rng([self._seed, look.trial.number, look.step])
        shape = (self.horizon, self._spec.action_dim)
        return rng.uniform(self._spec.low, self._spec.high, shape).astype(np.float32)
