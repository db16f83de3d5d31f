"""What every policy's recipe is: its sections, and how it becomes a model. A class a kind of policy."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import model_validator
from torch import Tensor

from data_specs.batches import PolicyBatch
from data_specs.pointing import POINTING_COLUMN, POINTING_NAME, SLOTS
from pipeline.config import RequestError
from pipeline.train.policy_sections import (
    AugmentSection,
    BackboneSection,
    DemonstrationsSection,
    EncodersSection,
    MomentsSection,
    RecoverySection,
)
from pipeline.train.policy_stores import PolicySizes
from pipeline.train_config import SplitSection, TrainRecipe
from stages.act import ACTConfig, ACTPolicy
from stages.draw import Draw
from stages.normalise import ActionStateNormaliser
from stages.vla import VLA, VLAConfig

_SMALL, _REAL = (400, 16, 48), (8192, 256, 480)
"""Of made-up moments, small ones and those of real sizes: points of a frame, patches of an encoder, and the height of
pictures of cameras that have any size (the store's own frame is 224)."""


class Policy(Protocol):
    """What the training of policies asks of a model; all are `nn.Module`s.

    Attributes:
        columns: what it reads of a store. targets: columns that it learns from beside. horizon: steps of a chunk.
        normaliser: with the statistics of the run.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    horizon: int
    normaliser: ActionStateNormaliser

    def __call__(self, batch: PolicyBatch, draw: Draw | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and detached scalars by name."""
        ...

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A] in the dataset's own units."""
        ...

    def calibrate(self, batches: Iterable[PolicyBatch]) -> None:
        """Take the statistics of frozen features from some training batches."""
        ...


class PolicyRecipe(TrainRecipe):
    """Everything that decides what `cla train vla` learns. Sizes of the model follow the stores."""

    policy: str
    data: MomentsSection = MomentsSection()
    labels: DemonstrationsSection = DemonstrationsSection()
    split: SplitSection = SplitSection()
    augment: AugmentSection = AugmentSection()
    recovery: RecoverySection = RecoverySection()
    encoders: EncodersSection = EncodersSection()

    @property
    @abstractmethod
    def latent(self) -> bool:
        """Whether codes of a latent action model are learned, in place of actions."""

    @property
    @abstractmethod
    def action(self) -> int:
        """Dimensions of the action."""

    @abstractmethod
    def for_stores(self, sizes: PolicySizes) -> Self:
        """The recipe for the robot and the features of some stores."""

    @abstractmethod
    def build(self) -> Any:
        """The model with fresh weights from torch's global generator. ValueError for sizes that do not fit together."""

    @abstractmethod
    def example_sizes(self, *, small: bool = True) -> Mapping[str, Any]:
        """Arguments of `PolicyBatch.example` for a batch that the model can read; unless `small`, of real sizes."""

    def build_checked(self, device: torch.device | str) -> Any:
        """The model on a device, `meta` to ask it what it reads. RequestError when it cannot be built."""
        try:
            with torch.device(device):
                return self.build()
        except ValueError as error:
            raise RequestError(f"The recipe's model cannot be built: {error}.") from None

    def example(self, size: int, seed: int = 0, *, small: bool = True) -> PolicyBatch:
        """Made-up moments that the model can learn from, with what it reads and nothing else."""
        model = self.build_checked("meta")
        columns = model.columns
        batch = PolicyBatch.example(size, seed=seed, **self.example_sizes(small=small))
        extra = {POINTING_NAME: torch.ones(size, len(SLOTS), 4)} if POINTING_COLUMN in model.targets else {}
        families = ("tokens", "cells", "points", "camera", "state")
        dropped: dict[str, Any] = {name: None for name in families if name not in columns}
        return replace(
            batch,
            frames=replace(batch.frames, rgb=None, extra=extra, **dropped),
            language=batch.language if "language" in columns else None,
            action=None if self.latent else batch.action,
            is_pad=None if self.latent else batch.is_pad,
            codes=batch.codes if self.latent else None,
        )


class VlaRecipe(PolicyRecipe):
    """A `VLA`: language, vision and state, a backbone, a head."""

    policy: Literal["vla"] = "vla"
    model: VLAConfig = VLAConfig()

    @model_validator(mode="after")
    def _mirrors_all_it_sees(self) -> Self:
        if self.augment.mirror and set(self.model.vision.names) != {"pointing"}:
            raise ValueError(
                "augment.mirror mirrors points and the hand, neither pictures nor the places of cached tokens: it "
                "needs model.vision.parts=pointing; set augment.mirror=false"
            )
        return self

    @property
    def latent(self) -> bool:
        """Whether `model.objective` is `latent`."""
        return self.model.objective == "latent"

    @property
    def action(self) -> int:
        """Dimensions of the action."""
        return self.model.action

    def for_stores(self, sizes: PolicySizes) -> Self:
        """The recipe for the robot and the features of some stores. A latent policy needs no robot."""
        action = sizes.action or (self.model.action if self.latent else 0)
        model = self.model.for_store(state=sizes.state, action=action, channels=sizes.channels)
        return self.model_copy(update={"model": model})

    def build(self) -> VLA:
        """The model with fresh weights."""
        return VLA(self.model)

    def example_sizes(self, *, small: bool = True) -> Mapping[str, Any]:
        """Those of the model."""
        model, vision = self.model, self.model.vision
        points, patches, side = _SMALL if small else _REAL
        encoded = dict.fromkeys(vision.tower.encoders, (vision.tower.special + patches, vision.tower.channels))
        cameras = [name for name in vision.patch.views.split("+") if name] if "patch" in vision.names else []
        return {
            "points": points,
            "channels": (vision.pointing if "pointing" in vision.names else vision.concerto).channels,
            "language": max(model.language.channels, 1),
            "state": model.state,
            "action": model.action,
            "horizon": model.horizon,
            "codes": model.latent.tokens,
            "images": _pictures(cameras, side),
            "vision": {
                **(encoded if "tower" in vision.names else {}),
                **({"vggt": (vision.vggt.special + patches, vision.vggt.channels)} if "vggt" in vision.names else {}),
                **(
                    {"vggt": (vision.vggt.special + patches, model.adapter.channels)}
                    if model.backbone == "vggt"
                    else {}
                ),
            },
        }


class ActRecipe(PolicyRecipe):
    """An `ACTPolicy`."""

    policy: Literal["act"] = "act"
    model: ACTConfig = ACTConfig()
    backbone: BackboneSection = BackboneSection()

    @model_validator(mode="after")
    def _sees_pictures(self) -> Self:
        if self.augment.mirror:
            raise ValueError("augment.mirror is for policies that see points alone; set augment.mirror=false")
        return self

    @property
    def latent(self) -> bool:
        """Never."""
        return False

    @property
    def action(self) -> int:
        """Dimensions of the action."""
        return self.model.action

    def for_stores(self, sizes: PolicySizes) -> Self:
        """The recipe for the robot of some stores."""
        model = self.model.for_store(state=sizes.state, action=sizes.action, channels=sizes.channels)
        return self.model_copy(update={"model": model})

    def build(self) -> ACTPolicy:
        """The model with fresh weights."""
        return ACTPolicy(self.model)

    def example_sizes(self, *, small: bool = True) -> Mapping[str, Any]:
        """Those of the model."""
        model = self.model
        points, _, side = _SMALL if small else _REAL
        return {
            "points": points,
            "language": max(model.language.channels, 1),
            "state": model.state,
            "action": model.action,
            "horizon": model.horizon,
            "images": _pictures(model.cameras, side),
        }


KINDS: dict[str, type[PolicyRecipe]] = {"vla": VlaRecipe, "act": ActRecipe}
"""The recipe of each kind of policy, as `policy` names them."""


def read_recipe(values: Mapping[str, Any]) -> PolicyRecipe:
    """The recipe that a run has kept. pydantic's ValidationError when this version reads it otherwise."""
    return KINDS.get(str(values.get("policy")), VlaRecipe).model_validate(values)


def _pictures(cameras: Iterable[str], side: int) -> dict[str, tuple[int, int]]:
    return {name: (224, 224) if name == "rgb" else (side, side * 4 // 3) for name in cameras}
