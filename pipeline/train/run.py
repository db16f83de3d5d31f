"""A trained run, for whoever uses its model: labels, probes, policies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.config import FailedError, RequestError, leaf_values
from pipeline.train.checkpoint import RUN, RunFolder, RunRecord, Which, load_weights, read_record
from pipeline.train_config import TrainRecipe


@dataclass(frozen=True)
class Run:
    """A run's folder and what its `run.json` says."""

    path: Path
    record: RunRecord

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """The run in a folder. RequestError when there is none, or it is of another version."""
        folder = Path(path)
        return cls(path=folder, record=RunFolder(folder).record())

    @property
    def task(self) -> str:
        """What it learned: `laq`, ..."""
        return self.record.task

    @property
    def recipe(self) -> str:
        """Name of the recipe that it started from."""
        return self.record.recipe

    @property
    def config(self) -> dict[str, Any]:
        """The whole recipe as it was used, as JSON values."""
        return self.record.config

    @property
    def store(self) -> dict[str, Any]:
        """The training store: `url`, `digest`, `sizes`, `models`, `geometry`."""
        return self.record.store

    @property
    def store_digest(self) -> str:
        """SHA-256 of the training store's content."""
        return str(self.record.store.get("digest", ""))

    @property
    def statistics(self) -> dict[str, Any]:
        """Statistics of state and action of the training store, where it has any."""
        return self.record.statistics

    @property
    def split(self) -> dict[str, Any]:
        """How training clips were told from held-out ones, and how many there are; the keys are in `split.json`."""
        return self.record.split

    @property
    def step(self) -> int:
        """Steps of the best checkpoint: those of the model that `load_model` gives. RequestError without one."""
        return self.checkpoint("best").step

    @cached_property
    def typed_recipe(self) -> TrainRecipe:
        """The recipe as its own type. FailedError when this version of the program reads it otherwise."""
        try:
            recipe: TrainRecipe = _task_type(self.task).read_recipe(self.config)
        except ValidationError as error:
            raise self._unknown([".".join(map(str, problem["loc"])) for problem in error.errors()]) from error
        mine, theirs = leaf_values(recipe.model_dump(mode="json")), leaf_values(self.config)
        names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if names:
            raise self._unknown(names)
        return recipe

    def _unknown(self, names: Sequence[str]) -> FailedError:
        return FailedError(
            f"This version of concerto-laq reads otherwise the recipe of the run at {self.path} ({', '.join(names)}): "
            f"install version {self.record.versions.get('concerto-laq', 'that wrote it')}, or train anew."
        )

    def checkpoint(self, which: Which = "best") -> RunRecord:
        """The record of a checkpoint, with its step and validation loss."""
        return read_record(RunFolder(self.path).folder(which) / RUN)

    def load_model(self, device: torch.device | str = "cpu", which: Which = "best") -> nn.Module:
        """The model with the weights of a checkpoint, in evaluation mode, its parameters frozen.

        Raises RequestError when there is no checkpoint, FailedError when its weights do not fit, name for name.
        """
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = _task_type(self.task).model_of(self.typed_recipe)
        load_weights(model, RunFolder(self.path).folder(which))
        return model.to(device).eval().requires_grad_(False)


def _task_type(name: str) -> Any:
    """The task class of a name; each is imported only when it is asked for."""
    if name == "laq":
        from pipeline.train.laq import LaqTask

        return LaqTask
    if name == "vla":
        from pipeline.train.vla import VlaTask

        return VlaTask
    raise RequestError(f"This version of concerto-laq knows no task {name!r}: its runs cannot be used for this.")
