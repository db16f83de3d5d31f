"""The task of `cla train vla`: a policy, moments of demonstrations, and what the policy shall foresee of them.

Shape legend: B moments, H steps of a chunk, A dimensions of an action.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from pipeline.train.augment import augmented
from pipeline.train.first_weights import BackboneWeights, TrunkOfRun
from pipeline.train.mirror import mirrored
from pipeline.train.policy_recipe import PolicyRecipe, read_recipe
from pipeline.train.recovery import displaced
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train_config import TrainRecipe
from stages.draw import Draw, mix_seed
from stages.normalise import fixed_statistics

CALIBRATION = 512
"""Moments that the statistics of frozen features are taken of."""


class Moments(Protocol):
    """Where the batches come from: `PolicyData` of stores, or made-up ones."""

    def batches(self, plan: BatchPlan) -> Iterator[PolicyBatch]:
        """Training batches from `plan.start` on, without end."""
        ...

    def first(self, samples: int) -> Iterable[PolicyBatch]:
        """Batches of the first training moments, the same in every process."""
        ...

    def validation_batches(self, rank: int, world: int) -> Iterable[PolicyBatch]:
        """This process's share of the held-out moments."""
        ...

    def keys(self, batch: PolicyBatch) -> list[str]:
        """Names of the moments."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Of states and actions."""
        ...

    def describe(self) -> dict[str, Any]:
        """For `run.json` and `split.json`."""
        ...


class VlaTask(Task[PolicyBatch]):
    """A policy by `recipe` from `moments`.

    Args:
        recipe: for the stores of the moments (`PolicyRecipe.for_stores`).
        moments: what it learns from.
        trunk: another run's weights to start from. backbone: those of ACT's ResNet.
        facts: more to keep under `store` in `run.json`.
        notes: more to tell the user at the start.
    """

    name: ClassVar[str] = "vla"
    recipe_type: ClassVar[type[TrainRecipe]] = PolicyRecipe
    recipe: PolicyRecipe

    def __init__(
        self,
        recipe: PolicyRecipe,
        moments: Moments,
        *,
        trunk: TrunkOfRun | None = None,
        backbone: BackboneWeights | None = None,
        facts: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.recipe, self.moments = recipe, moments
        self._trunk, self._backbone = trunk, backbone
        self._facts, self._notes = dict(facts or {}), tuple(notes)
        self._described = moments.describe()

    @classmethod
    def read_recipe(cls, values: Mapping[str, Any]) -> PolicyRecipe:
        """The recipe of a run, of its own kind."""
        return read_recipe(values)

    @classmethod
    def model_of(cls, recipe: PolicyRecipe) -> nn.Module:
        """The policy with fresh weights."""
        model: nn.Module = recipe.build_checked("cpu")
        return model

    def describe(self) -> Mapping[str, Any]:
        """The stores with their frozen models and extraction recipes, the split, and the statistics."""
        return {**self._described, "store": {**self._described["store"], **self._facts}}

    def resumed(self, store: Mapping[str, Any]) -> "VlaTask":
        """The task of a run that goes on, which says what the run said of its first weights."""
        kept = {name: store[name] for name in ("init_from", "backbone") if name in store}
        return VlaTask(self.recipe, self.moments, facts={**self._facts, **kept})

    def notes(self) -> list[str]:
        """What is left out of the data, and where the first weights come from."""
        notes = list(self._notes)
        if self._backbone is not None:
            notes += self._backbone.notes
        if self._trunk is not None:
            notes += self._trunk.notes(self.recipe.build_checked("meta"))
        return notes

    def start(self, model: Any, device: torch.device) -> None:
        """Statistics of states, actions and frozen features; then the weights that are not fresh."""
        model.calibrate(batch.to(device) for batch in self.moments.first(CALIBRATION))
        statistics = dict(self._described["statistics"])
        if self.recipe.latent:  # the data need have no robot; nothing is normalised by these
            statistics["action"] = fixed_statistics(self.recipe.action)
        model.normaliser.set_statistics(statistics)
        if self._backbone is not None:
            self._backbone.load(model.backbone)
        if self._trunk is not None:
            self._trunk.load(model)

    def lr_scales(self, model: Any) -> Mapping[str, float]:
        """Those of the model, where it has any."""
        return model.lr_scales() if hasattr(model, "lr_scales") else {}

    def batches(self, plan: BatchPlan) -> Iterator[PolicyBatch]:
        """Shuffled training moments."""
        return self.moments.batches(plan)

    def validation_batches(self, rank: int, world: int) -> Iterable[PolicyBatch]:
        """Moments of held-out clips."""
        return self.moments.validation_batches(rank, world)

    def loss(self, model: Any, batch: PolicyBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the model, in training on changed pictures, mirrored moments and displaced hands; in validation also
        the errors of its actions.
        """
        if torch.is_grad_enabled():
            batch = augmented(batch, self.recipe.augment, step.draw)
            if self.recipe.augment.mirror:
                batch = mirrored(batch, step.draw)
            loss, metrics = model(displaced(batch, self.recipe.recovery, step.draw), step.draw)
            return loss, metrics
        loss, metrics = model(batch, step.draw)
        if batch.action is None:
            return loss, metrics
        draw = Draw.whole(len(batch), seed=mix_seed(self.recipe.seed), step=step.number, device=batch.action.device)
        return loss, {**metrics, **action_errors(model.act(batch, draw), batch)}

    def keys(self, batch: PolicyBatch) -> list[str]:
        """Keys of the batch's clips."""
        return self.moments.keys(batch)


def action_errors(predicted_BHA: Tensor, batch: PolicyBatch) -> dict[str, Tensor]:
    """Mean absolute errors of chunks in the data's units: `error/0`, … by dimension, and `error` over all of them.

    Over the steps that are not padding: of every moment over its own, then over the moments.
    """
    action, is_pad = batch.need_action()
    horizon = predicted_BHA.shape[1]
    real = ~is_pad[:, :horizon]
    error = (predicted_BHA - action[:, :horizon]).abs() * real[..., None]
    by_dimension = (error.sum(1) / real.sum(1).clamp_min(1)[:, None]).mean(0)
    return {
        **{f"error/{i}": value for i, value in enumerate(by_dimension)},
        "error": by_dimension.mean(),
    }
