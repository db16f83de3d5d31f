"""A trained policy, ready to act: its run, its module, and what it must be shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from data_specs.shards import VISION, ModelRecord
from pipeline.config import ExtractRecipe, FailedError, RequestError
from pipeline.devices import choose_device
from pipeline.evaluate.encoding import run_facts
from pipeline.evaluate.policy.environment import EnvironmentSpec
from pipeline.evaluate.policy.sight import Sight
from pipeline.train.checkpoint import Which
from pipeline.train.run import Run
from stages.draw import Draw


class ActingModel(Protocol):
    """What is asked of a policy's module. `columns`: what it reads of a store; `horizon`: steps of a chunk."""

    columns: tuple[str, ...]
    horizon: int

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        """Chunks f4 [B,H,A] in the dataset's units."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPolicy:
    """A policy `model` of `run` on `device`, in evaluation mode. `which` checkpoint it is."""

    run: Run
    model: ActingModel
    device: torch.device
    which: Which

    @classmethod
    def open(cls, path: Path, *, checkpoint: str = "best", device: str = "auto") -> "LoadedPolicy":
        """A checkpoint of a run. RequestError when there is none, or it does not give actions."""
        if checkpoint not in ("best", "last"):
            raise RequestError(f"--checkpoint {checkpoint} is unknown: expected best or last.")
        which: Which = "best" if checkpoint == "best" else "last"
        run = Run.open(path)
        if run.task != "vla":
            raise RequestError(
                f"The run at {path} is of task {run.task}, which does not act: give one of `cla train vla`."
            )
        if run.config.get("model", {}).get("objective") == "latent":
            raise RequestError(
                f"The run at {path} answers with latent actions: train one that acts from it, with --init-from {path} "
                "and demonstrations."
            )
        chosen = choose_device(device)
        return cls(run=run, model=cast(ActingModel, run.load_model(chosen, which)), device=chosen, which=which)

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        return self.model.columns

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return self.model.horizon

    @property
    def dataset(self) -> dict[str, Any]:
        """The dataset behind its store: name, options, ..."""
        return dict(self.run.store.get("dataset", {}))

    @property
    def models(self) -> tuple[ModelRecord, ...]:
        """The frozen models behind its store."""
        return tuple(ModelRecord.model_validate(model) for model in self.run.store.get("models", ()))

    @property
    def roles(self) -> frozenset[str]:
        """The roles of the frozen models that what it reads comes from."""
        cloud = {"vggt", "concerto"} if needs_cloud(self.columns) else set()
        text = {"text"} if "language" in self.columns else set()
        return frozenset({*cloud, *text, *(column for column in self.columns if column.startswith(VISION))})

    @property
    def extraction(self) -> ExtractRecipe:
        """The recipe that its store was extracted by."""
        return extraction_recipe(self.run)

    def facts(self) -> dict[str, Any]:
        """What names it."""
        return run_facts(self.run, cast(nn.Module, self.model), self.which)

    def sight(self, spec: EnvironmentSpec) -> Sight:
        """What it must be shown of an environment. RequestError when it cannot act there."""
        sizes, where = self.run.store.get("sizes", {}), f"the run at {self.run.path}"
        action, state = int(sizes.get("A", 0)), int(sizes.get("S", 0))
        data = self.dataset.get("name") or "its data"
        if action != spec.action_dim:
            raise RequestError(
                f"Environment {spec.name} takes actions of {spec.action_dim} dimensions, {where} gives {action} (from "
                f"{data}): judge it in an environment of its own robot."
            )
        if "state" in self.columns and state != spec.state_dim:
            raise RequestError(
                f"Environment {spec.name} has states of {spec.state_dim} dimensions, {where} reads {state} (from "
                f"{data}): judge it in an environment of its own robot."
            )
        recipe = self.extraction
        if recipe.geometry.source == "sensor" and needs_cloud(self.columns) and not spec.sensors:
            raise RequestError(
                f"Environment {spec.name} has no depth sensor, and {where} reads features of sensor depth "
                "(geometry.source=sensor): train one on a store whose depth is of VGGT."
            )
        return Sight.of(self.dataset, recipe, self.columns, spec)


def needs_cloud(columns: tuple[str, ...]) -> bool:
    """Whether what a policy reads comes from points with depth."""
    return any(column.partition("/")[0] in ("tokens", "cells", "points", "camera") for column in columns)


def extraction_recipe(run: Run) -> ExtractRecipe:
    """The recipe that a run's store was extracted by. FailedError when this version reads it otherwise."""
    values = run.store.get("recipe")
    if not values:
        raise RequestError(
            f"The run at {run.path} does not say how its store was extracted, so that nothing can be shown to it live: "
            "it was trained on made-up moments, or by an older version. Train it on a store of `cla extract`."
        )
    try:
        return ExtractRecipe.model_validate(values)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise FailedError(
            f"This version of concerto-laq reads otherwise the extraction recipe behind the run at {run.path} "
            f"({names}): install version {run.record.versions.get('concerto-laq', 'that wrote it')}, or extract and "
            "train anew."
        ) from error
