"""Made-up moments: whether a recipe trains, saves and resumes here, with no data and no weights."""

from collections.abc import Iterable, Iterator
from typing import Any

from data_specs.batches import PolicyBatch
from pipeline.train.policy_recipe import PolicyRecipe
from pipeline.train.task import BatchPlan
from stages.draw import mix_seed
from stages.normalise import fixed_statistics

_TRAINING, _HELD_OUT = 0, 1
_VALIDATION_BATCHES = 2


class ExampleMoments:
    """Batches of `PolicyRecipe.example`, a function of the recipe's seed and the place in the stream.

    Unless `small`, frames, pictures and encoders' outputs are of real sizes.
    """

    def __init__(self, recipe: PolicyRecipe, *, small: bool = True) -> None:
        self._recipe, self._small = recipe, small

    def batches(self, plan: BatchPlan) -> Iterator[PolicyBatch]:
        """Training batches, without end."""
        return (self._make(_TRAINING, places.start) for places in plan)

    def first(self, samples: int) -> Iterable[PolicyBatch]:
        """One batch."""
        return [self._make(_TRAINING, 0)]

    def validation_batches(self, rank: int, world: int) -> Iterable[PolicyBatch]:
        """Two batches of others."""
        return (self._make(_HELD_OUT, i) for i in range(_VALIDATION_BATCHES) if i % world == rank)

    def keys(self, batch: PolicyBatch) -> list[str]:
        """Made-up names."""
        return [f"example-{i}" for i in range(len(batch))]

    def statistics(self) -> dict[str, Any]:
        """Of numbers that are normalised already."""
        sizes = self._recipe.example_sizes()
        return {name: fixed_statistics(sizes[name]) for name in ("state", "action") if sizes[name]}

    def describe(self) -> dict[str, Any]:
        """For `run.json`: that there is no store."""
        return {"store": {"url": "", "digest": "example", "models": []}, "statistics": self.statistics()}

    def _make(self, side: int, number: int) -> PolicyBatch:
        seed = mix_seed(self._recipe.seed, side, number) % 2**31
        return self._recipe.example(self._recipe.train.batch, seed, small=self._small)
