"""What a dataset is to the pipeline: its facts, the clips it lists, and how frames are taken from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Geometry = Literal["vggt", "vggt_window", "sensor"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a dataset, the same for every copy of it.

    `has_depth` says that its clips carry sensor depth and cameras, `state_dim` and `action_dim` are 0 where it
    has no robot data. `where` tells a user in a sentence how to get it.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    where: str
    licence: str
    needs_root: bool = True
    has_depth: bool = False
    state_dim: int = 0
    action_dim: int = 0


@dataclass(frozen=True, kw_only=True)
class ClipRef:
    """A clip as listed, before anything of it is decoded: cheap, picklable, sorted by `key`.

    `key` is unique in the dataset and stable over machines: letters, digits, `-`, `_` and `/` only (see
    `safe_key`); it seeds everything random about the clip. `problem` is set where the listing already knows
    that the clip is bad (a label without an id, a missing video); `Source.read` then raises it as `BadClip`.
    """

    key: str
    split: str = ""
    text: str = ""
    path: Path | None = None
    index: int = 0
    problem: str | None = None
    extra: tuple[tuple[str, str], ...] = field(default=())


class FrameSampling(BaseModel):
    """Which frames of a clip are taken. Times come from the timestamps of the video, never from frame numbers.

    With `fps` the frames nearest to first + k / fps are taken (each at most once); without it every `stride`-th
    frame. `max` limits how many are taken from the start of the clip (0: all), a clip that yields fewer than
    `min` is bad data. Frames are resized so that the short side is `size` and centre-cropped to size x size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float | None = Field(default=4.0, gt=0)
    stride: int = Field(default=1, ge=1)
    max: int = Field(default=16, ge=0)
    min: int = Field(default=2, ge=1)
    size: int = Field(default=224, ge=14)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if 0 < self.max < self.min:
            raise ValueError(f"max={self.max} is less than min={self.min}, so that every clip would be bad")
        return self


def safe_key(text: str) -> str:
    """`text` with every character outside [A-Za-z0-9_/-] replaced, so that it can name a file in a tar shard."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_/-") else "-" for c in text).strip("/-") or "clip"
