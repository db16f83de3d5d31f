"""What the networks take from a store: packed tensors of many frames, with offsets.

Shape legend: B frames of the batch, T tokens (sum of N'), M (cell, token) pairs, P points a frame, C channels.
Every type makes a fake example of itself, and moves to a device or to pinned memory as a whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from data_specs.examples import example_record
from data_specs.shards import ARRAYS, GRID


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Tensors, nested batches and plain values by name."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `change` applied to every tensor."""
        return replace(self, **{f.name: _map(getattr(self, f.name), change) for f in fields(self)})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory; a DataLoader with `pin_memory=True` calls this."""
        return self.map(lambda tensor: tensor.pin_memory())


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Batch):
        return value.map(change)
    if isinstance(value, dict):
        return {name: _map(item, change) for name, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch(Batch):
    """Distinct coarse features of B frames.

    Attributes:
        feat: f2 [T,C]. coord: f2 [T,3], normalised. count: u2 [T], points that share the row.
        offset: i8 [B+1]; frame b has rows offset[b]:offset[b+1].
    """

    feat: Tensor
    coord: Tensor
    count: Tensor
    offset: Tensor

    @property
    def frame(self) -> Tensor:
        """The frame of each row, i8 [T]."""
        return _owner(self.offset)

    def with_feat(self, feat: Tensor) -> "TokenBatch":
        """The same tokens with other features [T, any width]."""
        return replace(self, feat=feat)

    @classmethod
    def example(cls, frames: int = 2, channels: int = 512, seed: int = 0) -> "TokenBatch":
        """Made-up tokens of a made-up scene."""
        return FrameBatch.example(frames=frames, channels=channels, seed=seed).need_tokens()


@dataclass(frozen=True, kw_only=True, eq=False)
class CellBatch(Batch):
    """How many points of 14x14 cell `cell` share token `token` of their frame.

    Attributes:
        cell: u1 [M], row * 14 + column. token: u2 [M], counted from the first token of its frame. count: u2 [M].
        offset: i8 [B+1].
    """

    cell: Tensor
    token: Tensor
    count: Tensor
    offset: Tensor

    @property
    def frame(self) -> Tensor:
        """The frame of each triplet, i8 [M]."""
        return _owner(self.offset)

    def packed_cell(self) -> Tensor:
        """Index into a [B*196] raster, i8 [M]."""
        return self.frame * (GRID * GRID) + self.cell

    def packed_token(self, tokens: TokenBatch) -> Tensor:
        """Row of `tokens.feat` that each triplet means, i8 [M]."""
        return tokens.offset[self.frame] + self.token.long()  # torch adds no unsigned integers to others

    @classmethod
    def example(cls, frames: int = 2, seed: int = 0) -> "CellBatch":
        """Made-up cells of a made-up scene."""
        cells = FrameBatch.example(frames=frames, seed=seed).cells
        assert cells is not None
        return cells


@dataclass(frozen=True, kw_only=True, eq=False)
class PointBatch(Batch):
    """The kept points as stored: `pixel` i4 [B,P], `rgb` u1 [B,P,3], `depth` i4 [B,P] of 65,535, `conf` u1 [B,P]."""

    pixel: Tensor
    rgb: Tensor
    depth: Tensor
    conf: Tensor

    @classmethod
    def example(cls, frames: int = 2, points: int = 8192, seed: int = 0) -> "PointBatch":
        """Made-up points of a made-up scene."""
        batch = FrameBatch.example(frames=frames, points=points, seed=seed).points
        assert batch is not None
        return batch


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraBatch(Batch):
    """Cameras of B frames, f4.

    Attributes:
        intrinsic: [B,3,3] pixels. extrinsic: [B,3,4] OpenCV camera-from-world.
        range: [B,2] near and far. conf_range: [B,2]. normalisation: [B,4] centre and scale.
    """

    intrinsic: Tensor
    extrinsic: Tensor
    range: Tensor
    conf_range: Tensor
    normalisation: Tensor

    @classmethod
    def example(cls, frames: int = 2, seed: int = 0) -> "CameraBatch":
        """Made-up cameras."""
        camera = FrameBatch.example(frames=frames, seed=seed).camera
        assert camera is not None
        return camera


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch(Batch):
    """Encoded frames (JPEG or PNG) end to end: `data` u1 [bytes], `offset` i8 [B+1]."""

    data: Tensor
    offset: Tensor

    def encoded(self, index: int) -> bytes:
        """The bytes of one image."""
        return self.data[int(self.offset[index]) : int(self.offset[index + 1])].numpy().tobytes()

    @classmethod
    def example(cls, frames: int = 2, seed: int = 0) -> "ImageBatch":
        """Images of a made-up scene."""
        images = FrameBatch.example(frames=frames, seed=seed).rgb
        assert images is not None
        return images


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBatch(Batch):
    """The columns that were asked for, of B frames; the others are None.

    Attributes:
        index: i8 [B], flat indices of the frames in their store.
        time: f8 [B], seconds in the video.
        state, action: f4 [B,S], [B,A] in the dataset's own units. is_pad: bool [B].
        extra: other arrays by name, a row a frame.
        vision: frozen image encoders' outputs by name, f2 [B,N,D].
        views: encoded pictures of further cameras by name.
    """

    index: Tensor
    time: Tensor
    tokens: TokenBatch | None = None
    cells: CellBatch | None = None
    points: PointBatch | None = None
    camera: CameraBatch | None = None
    rgb: ImageBatch | None = None
    state: Tensor | None = None
    action: Tensor | None = None
    is_pad: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    vision: dict[str, Tensor] = field(default_factory=dict)
    views: dict[str, ImageBatch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def need_tokens(self) -> TokenBatch:
        """The tokens; ValueError when the batch was made without them."""
        if self.tokens is None:
            raise ValueError("the batch has no tokens: ask for columns=('tokens', ...)")
        return self.tokens

    def need_cells(self) -> CellBatch:
        """The (cell, token) pairs; ValueError when the batch was made without them."""
        if self.cells is None:
            raise ValueError("the batch has no cells: ask for columns=('cells', ...)")
        return self.cells

    def need_pixels(self) -> Tensor:
        """The decoded frames u1 [B,224,224,3] of `with_pixels`; ValueError when there are none."""
        if "pixels" not in self.extra:
            raise ValueError("the batch has no pixels: ask for columns=('rgb', ...), decode and add them (with_pixels)")
        return self.extra["pixels"]

    def without_images(self) -> "FrameBatch":
        """The same frames without their encoded images."""
        return replace(self, rgb=None)

    def with_pixels(self, pixels: Tensor) -> "FrameBatch":
        """The same frames with their decoded images u1 [B,H,W,3]."""
        return replace(self, extra={**self.extra, "pixels": pixels})

    @classmethod
    def example(
        cls,
        frames: int = 2,
        points: int = 8192,
        channels: int = 512,
        state: int = 0,
        action: int = 0,
        seed: int = 0,
        columns: Sequence[str] = ("tokens", "cells", "points", "camera", "rgb", "state", "action", "is_pad"),
    ) -> "FrameBatch":
        """Consecutive frames of a made-up clip (see `data_specs.examples`), with the columns named."""
        record = example_record(frames=frames, points=points, channels=channels, state=state, action=action, seed=seed)
        values: dict[str, Any] = {name: pack(name, vars(getattr(record, name))) for name in BATCHES if name in columns}
        for name in ("state", "action", "is_pad"):
            array = getattr(record, name)
            if name in columns and array is not None:
                values[name] = torch.from_numpy(array)
        return cls(index=torch.arange(frames), time=torch.from_numpy(record.time), **values)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch(Batch):
    """Two frames of one clip each, a fixed time apart: row b of `first` and row b of `second`."""

    first: FrameBatch
    second: FrameBatch

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def example(cls, pairs: int = 2, channels: int = 512, seed: int = 0) -> "PairBatch":
        """Frames of two made-up clips."""
        return cls(
            first=FrameBatch.example(frames=pairs, channels=channels, seed=seed),
            second=FrameBatch.example(frames=pairs, channels=channels, seed=seed + 1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageBatch(Batch):
    """Frozen text encoder outputs of B instructions: `feat` f2 or f4 [B,L,D], `mask` bool [B,L], true for real ones."""

    feat: Tensor
    mask: Tensor

    @classmethod
    def example(cls, size: int = 2, length: int = 12, channels: int = 1024, seed: int = 0) -> "LanguageBatch":
        """Made-up instructions of different lengths; what is masked is not zero, so that a leak shows."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, length + 1, (size, 1), generator=generator)
        return cls(feat=torch.randn(size, length, channels, generator=generator), mask=torch.arange(length) < lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyBatch(Batch):
    """What a policy sees at B moments, and what was done from there on. Columns that were not asked for are missing.

    Attributes:
        frames: the frames with the columns of the model; `frames.state` f4 [B,S] in the dataset's own units.
        language: the instructions, or None for a policy without.
        images: decoded pictures u1 [B,H,W,3] by view; "rgb" is the store's own square frame.
        action: f4 [B,H,A] in the dataset's own units, None at inference. is_pad: bool [B,H], true past the episode's
            end.
        codes: i8 [B,K], codes of a latent action model, where the objective is to foresee them.
    """

    frames: FrameBatch
    language: LanguageBatch | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
    action: Tensor | None = None
    is_pad: Tensor | None = None
    codes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def need_state(self) -> Tensor:
        """The states f4 [B,S]; ValueError when the batch was made without them."""
        if self.frames.state is None:
            raise ValueError("the batch has no state: ask for columns=('state', ...)")
        return self.frames.state

    def need_language(self) -> LanguageBatch:
        """The instructions; ValueError when the batch was made without them."""
        if self.language is None:
            raise ValueError("the batch has no language: extract with a text encoder (text.weights=...)")
        return self.language

    def need_action(self) -> tuple[Tensor, Tensor]:
        """Actions [B,H,A] and padding [B,H]; ValueError at inference."""
        if self.action is None or self.is_pad is None:
            raise ValueError("the batch has no actions: it was made for inference")
        return self.action, self.is_pad

    @classmethod
    def example(
        cls,
        size: int = 2,
        *,
        points: int = 512,
        channels: int = 512,
        language: int = 1024,
        state: int = 8,
        action: int = 7,
        horizon: int = 10,
        codes: int = 4,
        images: Mapping[str, tuple[int, int]] = MappingProxyType({"rgb": (224, 224)}),
        vision: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        seed: int = 0,
    ) -> "PolicyBatch":
        """Made-up moments of a made-up robot; `images` gives (height, width) by view, `vision` (tokens, channels)."""
        generator = torch.Generator().manual_seed(seed)
        frames = FrameBatch.example(frames=size, points=points, channels=channels, state=state, seed=seed)
        kept = torch.randint(1, horizon + 1, (size, 1), generator=generator)
        encoded = {name: torch.randn(size, *shape, generator=generator).half() for name, shape in vision.items()}
        return cls(
            frames=replace(frames, vision=encoded),
            language=LanguageBatch.example(size, channels=language, seed=seed),
            images={
                name: torch.randint(256, (size, *shape, 3), dtype=torch.uint8, generator=generator)
                for name, shape in images.items()
            },
            action=torch.rand(size, horizon, action, generator=generator) * 2 - 1,
            is_pad=torch.arange(horizon) >= kept,
            codes=torch.randint(256, (size, codes), generator=generator),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudBatch(Batch):
    """Points of B frames with their coordinates.

    Attributes:
        xyz: f4 [B,P,3], world or normalised; 0 in padding. rgb: u1 [B,P,3]. conf: f4 [B,P].
        token: i8 [B,P], the point's token counted from the first of its frame; -1 in padding.
        kept: i8 [B], points that are real; they come first.
    """

    xyz: Tensor
    rgb: Tensor
    conf: Tensor
    token: Tensor
    kept: Tensor

    @classmethod
    def example(cls, frames: int = 2, points: int = 8192, seed: int = 0) -> "CloudBatch":
        """A made-up cloud in [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            xyz=torch.rand(frames, points, 3, generator=generator) * 2 - 1,
            rgb=torch.randint(256, (frames, points, 3), generator=generator, dtype=torch.uint8),
            conf=torch.rand(frames, points, generator=generator),
            token=torch.arange(points).div(8, rounding_mode="floor").expand(frames, -1),
            kept=torch.full((frames,), points),
        )


BATCHES: dict[str, type[Batch]] = {
    "tokens": TokenBatch,
    "cells": CellBatch,
    "points": PointBatch,
    "camera": CameraBatch,
    "rgb": ImageBatch,
}
"""The batch type of each family of arrays."""

_WIDER = {"points/pixel": "<i4", "points/depth": "<i4"}
"""Arrays that torch computes with directly; the others stay as compact as they are stored until something does."""


def batch_dtype(name: str) -> "np.dtype[Any]":
    """The numpy dtype that array `name` of a shard has in a batch."""
    return np.dtype(_WIDER.get(name, ARRAYS[name].dtype))


def pack(family: str, arrays: Mapping[str, Any]) -> Batch:
    """Arrays of a family (names without the prefix, writable) as its batch, in the dtypes of the batch."""
    arrays = {name: array for name, array in arrays.items() if array is not None}  # an optional one
    dtypes = {name: batch_dtype(f"{family}/{name}") for name in arrays}
    return BATCHES[family](
        **{name: torch.from_numpy(array.astype(dtypes[name], copy=False)) for name, array in arrays.items()}
    )


def _owner(offset: Tensor) -> Tensor:
    lengths = offset.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=offset.device), lengths)
