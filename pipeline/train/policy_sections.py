"""The sections of a policy's recipe beside its model."""

from typing import Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.train_config import DataSection


class MomentsSection(DataSection):
    """Which moments are trained on, and how often; and what is done about damaged shards.

    `balance`: `none` takes every moment once an epoch; `text` draws, with replacement, so that every instruction comes
    equally often, and `key` so that every task does, where clips are of one task when their keys are equal but for
    their digits (`s0-000012-pick`, `libero_goal/open_the_drawer/demo_3`). `weights` are the stores' shares, in the
    order of --store; without them all stores are one. With them, tasks are balanced within each store.
    """

    balance: Literal["none", "text", "key"] = "none"
    weights: tuple[float, ...] = ()


class DemonstrationsSection(Config):
    """Which training clips' actions are seen: the `fraction` with the least hashes of their keys, and no more than
    `max_clips` (0: any number). A smaller share is part of a larger one.

    The others are not trained on, or, with `pseudo`, with the actions that their latent actions (--codes) stand for, as
    the labelled clips teach it (`pipeline.train.pseudo_labels`).
    """

    fraction: float = Field(default=1.0, gt=0, le=1)
    max_clips: int = Field(default=0, ge=0)
    pseudo: bool = False


class AugmentSection(Config):
    """Random changes of what is seen, in training alone; cached features are never changed.

    Of the pictures of trained vision: `shift` moves one by up to that share of its side, both ways; `crop` shows a
    window of at least 1 - `crop` of its sides at the picture's size; what comes in from outside repeats the edge.
    `brightness`, `contrast` and `saturation` scale by a factor from 1 - x to 1 + x. Of clouds: `mirror` shows half of
    the moments in a mirror, with states and actions (`pipeline.train.mirror`).
    """

    shift: float = Field(default=0.0, ge=0, lt=0.5)
    crop: float = Field(default=0.0, ge=0, lt=0.9)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    mirror: bool = False

    @property
    def changes_pictures(self) -> bool:
        """Whether pictures are changed at all."""
        return any(self.model_dump(exclude={"mirror"}).values())


class RecoverySection(Config):
    """Hands displaced in training, with actions that lead back (`pipeline.train.recovery`), where actions are learned.

    `metres`: the displacement's deviation along each axis, 0 for none; `share` of the moments have one, across the way
    of the hand. It is undone by `step` metres a control step; an action of 1 moves the hand by `action_metres`.
    `radians`: likewise of a turn about the vertical, of another `share`, undone by `turn` radians a control step; an
    action of 1 turns by `action_radians`. For policies that know of their hand by the state alone.
    """

    metres: float = Field(default=0.0, ge=0, le=1)
    radians: float = Field(default=0.0, ge=0, le=3)
    share: float = Field(default=0.5, ge=0, le=1)
    step: float = Field(default=0.01, gt=0)
    turn: float = Field(default=0.12, gt=0)
    action_metres: float = Field(default=0.05, gt=0)
    action_radians: float = Field(default=0.5, gt=0)


class BackboneSection(Config):
    """The first weights of ACT's ResNet.

    `weights`: a Hub repository in the layout of `transformers`, a local file or folder, or empty for random ones, of
    which a note says so. `A|B` names a fallback: B where A cannot be had; which it was is recorded.
    """

    weights: str = ""
    revision: str = "main"


class EncodersSection(Config):
    """The frozen models that a recipe's store is made with, where the store does not say it itself: for
    `--print-model`, and for what to do when a store lacks a column.
    """

    text: str = "Qwen/Qwen3-0.6B-Base"
    tower: str = "facebook/dinov2-base"
    concerto: str = "Pointcept/Concerto/concerto_base.pth"
    vggt: str = "facebook/VGGT-1B"

    def behind(self) -> dict[str, str]:
        """The model behind each column."""
        return {
            "language": self.text,
            "vision/dinov2": self.tower,
            "tokens": self.concerto,
            "vision/vggt": self.vggt,
        }
