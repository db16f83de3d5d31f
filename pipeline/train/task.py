"""What a run learns: a subclass of `Task` a thing to learn. The loop knows nothing else.

A task plugs into the loop by five methods (`model_of`, `batches`, `validation_batches`, `loss`, `keys`); the other
hooks do nothing unless a task needs them. Everything random must come from the recipe's seed, from `Step.draw`, or
from torch's global generator (which checkpoints keep), so that a resumed run equals one that was never interrupted.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline.train_config import TrainRecipe
from stages.draw import Draw


class TaskBatch(Protocol):
    """What a task's batches can do: move to a device, and say how many samples they hold."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        ...

    def __len__(self) -> int: ...


BatchT = TypeVar("BatchT", bound=TaskBatch)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which places of the stream of training samples this process takes.

    All processes together take the stream from `start` on, without a gap or an overlap: the micro-batches of a step
    one after the other, each cut into one part a process. So two processes with a batch of n see what one process
    sees with a batch of 2n.

    Attributes:
        batch: samples of a micro-batch of one process. accumulate: micro-batches a step.
        rank, world: this process, and how many there are.
        start: samples that the run has taken already; a step never begins elsewhere.
    """

    batch: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    start: int = 0

    @property
    def step_samples(self) -> int:
        """Samples of a step over all processes."""
        return self.batch * self.accumulate * self.world

    def offset(self, micro: int) -> int:
        """Where micro-batch `micro` of this process begins, counted from the step's first sample."""
        return (micro * self.world + self.rank) * self.batch

    def __iter__(self) -> Iterator[range]:
        """The places of the micro-batches of this process, without end."""
        first = self.start
        while True:
            for micro in range(self.accumulate):
                begin = first + self.offset(micro)
                yield range(begin, begin + self.batch)
            first += self.step_samples


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where in the run a batch is. `number` counts finished optimiser steps; `draw` gives its random numbers."""

    number: int
    draw: Draw


class Task(ABC, Generic[BatchT]):
    """A thing to learn from a recipe, made once a process; the hooks are in the order in which the loop calls them."""

    name: ClassVar[str]
    """What `run.json` calls it."""

    recipe_type: ClassVar[type[TrainRecipe]] = TrainRecipe
    """What its recipes are."""

    recipe: TrainRecipe

    @classmethod
    def read_recipe(cls, values: Mapping[str, Any]) -> TrainRecipe:
        """The recipe that a run has kept. pydantic's ValidationError when this version reads it otherwise."""
        return cls.recipe_type.model_validate(values)

    @classmethod
    @abstractmethod
    def model_of(cls, recipe: Any) -> nn.Module:
        """The model of a recipe of this task, with fresh weights from torch's global generator."""

    def describe(self) -> Mapping[str, Any]:
        """What the run shall keep beside its recipe, as JSON values.

        `store` (its `digest` must be the same to resume), `split` and `statistics` go into `run.json`, `clips` (the
        keys of both sides of the split) into `split.json`.
        """
        return {}

    def notes(self) -> list[str]:
        """Sentences for the user about what a new run starts from and what it leaves out."""
        return []

    def start(self, model: Any, device: torch.device) -> None:
        """Before the first step of a new run (never on resume): for example a codebook from data.

        Must do the same in every process.
        """

    def lr_scales(self, model: Any) -> Mapping[str, float]:
        """What the learning rate is multiplied by, by the beginning of parameter names; 1 for all others."""
        return {}

    @abstractmethod
    def batches(self, plan: BatchPlan) -> Iterator[BatchT]:
        """Training batches from `plan.start` on, without end: a function of the recipe and the places of the plan."""

    @abstractmethod
    def validation_batches(self, rank: int, world: int) -> Iterable[BatchT]:
        """This process's share of the validation batches, the same every time; empty where there is no validation."""

    @abstractmethod
    def loss(self, model: Any, batch: BatchT, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (a mean over its samples, so that batches can be averaged) and scalars to log.

        `model` is the wrapped model: call it, do not reach into it. Called in training and in validation;
        `torch.is_grad_enabled()` and the model's own `training` tell them apart.
        """

    @abstractmethod
    def keys(self, batch: BatchT) -> list[str]:
        """Names of the samples of a batch, for the message of a loss that is not finite."""

    def after_step(self, model: Any, number: int) -> None:
        """After optimiser step `number` (from 1): a teacher's moving average, codes to be replaced."""

    def log_metrics(self, model: Any) -> dict[str, float]:
        """Numbers of the window since the last call, at every line of the log; all processes call it together."""
        return {}

    def warnings(self, metrics: Mapping[str, float], number: int) -> list[str]:
        """Sentences about what the metrics of a line say is going wrong, and what to change."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What the task itself must keep to resume (tensors and plain values; read back with `weights_only`)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if state:
            raise ValueError(f"task {self.name} keeps no state, and the checkpoint has {', '.join(state)}")
