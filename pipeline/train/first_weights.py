"""The weights that a policy's trained parts start from: ACT's ResNet from a file, or a trunk from another run."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data_specs.shards import ModelRecord
from pipeline.config import FailedError, RequestError
from pipeline.foreign import shortened, unreadable
from pipeline.store.identity import differing_model
from pipeline.train.checkpoint import MODEL, RunFolder
from pipeline.train.policy_recipe import PolicyRecipe
from pipeline.train.policy_sections import BackboneSection
from pipeline.train.run import Run
from pipeline.weights_files import find_file, read_file, sha256_of
from stages.resnet import ResNet
from stages.trunk import LoadedTrunk, load_trunk

_NAMES = ("model.safetensors", "pytorch_model.bin")
"""Under what names a repository or folder of `transformers` holds a model."""

_KEY, _PUBLISHED = "backbone.weights", "microsoft/resnet-18"


@dataclass(frozen=True, kw_only=True, eq=False)
class BackboneWeights:
    """A ResNet's weights (None: random ones, of `seed` where there is one), their record, and notes on the choice."""

    state: Mapping[str, Tensor] | None
    record: ModelRecord
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def find(cls, section: BackboneSection) -> "BackboneWeights":
        """Those of a recipe: the first of its alternatives that can be had.

        Raises RequestError with the alternatives when none can be had.
        """
        troubles: list[str] = []
        for name in section.weights.split("|"):
            try:
                return _read(name.strip(), section.revision, troubles)
            except RequestError as error:
                troubles.append(str(error))
        raise RequestError(" ".join(troubles) + f" {_KEY}=A|B names a fallback B.")

    def load(self, backbone: nn.Module) -> None:
        """Put them in place. RequestError when they are of another network."""
        assert isinstance(backbone, ResNet)
        if self.seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                backbone.load_state_dict(ResNet(backbone.config).state_dict())
        if self.state is None:
            return
        try:
            backbone.load_pretrained(self.state)
        except ValueError as error:
            raise RequestError(f"{_KEY}={self.record.name} cannot be used: {error}.") from None


def _read(name: str, revision: str, troubles: list[str]) -> BackboneWeights:
    notes = (f"{_KEY}: {name or 'random'}, a fallback, since: {troubles[0]}",) if troubles else ()
    if not name or name.startswith("random"):
        seed = re.fullmatch(r"random:(\d+)", name)
        if name and seed is None:
            raise RequestError(f"{_KEY}={name} does not say which: expected random:SEED, for example random:0.")
        warned = f"the backbone starts from RANDOM weights; ACT was published with ImageNet's: {_KEY}={_PUBLISHED}"
        record = ModelRecord(role="backbone", name=name or "random", revision="", sha256="", random=True)
        return BackboneWeights(state=None, record=record, seed=int(seed[1]) if seed else None, notes=(*notes, warned))
    file = find_file(_KEY, name, revision, _NAMES)
    state, _ = read_file(file.path)
    record = ModelRecord(
        role="backbone", name=file.name, revision=file.revision, sha256=sha256_of(file.path), random=False
    )
    return BackboneWeights(state=state, record=record, notes=notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrunkOfRun:
    """The weights of a run's best checkpoint, for the trunk of a new one."""

    run: Run
    state: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path, recipe: PolicyRecipe, models: tuple[ModelRecord, ...]) -> "TrunkOfRun":
        """Those of a run whose policy is built as `recipe`'s is, on features of the same frozen models.

        Raises RequestError for a run of another task, kind of policy, architecture, robot or features.
        """
        run = Run.open(path)
        if run.task != "vla":
            raise RequestError(f"--init-from {path} is a run of task {run.task}, expected one of `cla train vla`.")
        theirs = run.typed_recipe
        assert isinstance(theirs, PolicyRecipe)
        if theirs.policy != recipe.policy:
            raise RequestError(
                f"--init-from {path} is a run of policy {theirs.policy} (recipe {run.recipe}), and {recipe.name} is of "
                f"policy {recipe.policy}: choose a recipe of the run's kind."
            )
        if not theirs.latent and not recipe.latent and theirs.action != recipe.action:
            raise RequestError(
                f"--init-from {path} is a run with {theirs.action} dimensions of an action, and the store has "
                f"{recipe.action}: another robot. Start from a run with objective=latent, or without --init-from."
            )
        trained = [ModelRecord.model_validate(model) for model in run.store.get("models", [])]
        roles = {model.role for model in trained} & {model.role for model in models}
        if differs := differing_model(
            [model for model in trained if model.role in roles], [model for model in models if model.role in roles]
        ):
            raise RequestError(
                f"--init-from {path} was trained on features of another {differs.role} ({differs.ours}) than the "
                f"store's ({differs.theirs}): extract the store with the same weights."
            )
        found = cls(run=run, state=_weights(RunFolder(path).folder("best") / MODEL))
        found.load(recipe.build_checked("meta"))  # whether it fits, before anything is begun
        return found

    def load(self, model: nn.Module) -> LoadedTrunk:
        """Put them in place, all but head and normalisation. RequestError when they are of another architecture."""
        try:
            return load_trunk(model, self.state)
        except ValueError as error:
            raise RequestError(
                f"--init-from {self.run.path} is a run of another architecture: {error}. Give the recipe and overrides "
                f"that it was trained with ({self.run.recipe})."
            ) from None

    def describe(self) -> dict[str, Any]:
        """For `run.json`."""
        return {"path": str(self.run.path), "recipe": self.run.recipe, "step": self.run.step}

    def notes(self, model: nn.Module) -> Iterator[str]:
        """What a model takes from the run and what it does not, by part."""
        yield f"from {self.run.path} at step {self.run.step}"
        yield from self.load(model).lines()


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except unreadable(SafetensorError) as error:
        raise FailedError(f"The weights in {path} cannot be read ({shortened(error)}).") from error
