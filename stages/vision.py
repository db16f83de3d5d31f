"""What a policy sees, as tokens that know where in the picture they are; by config, any set of parts together.

    patch     16x16 patches of the 224 frame, and of further cameras' pictures; trained
    tower     patch tokens of a frozen image encoder (DINOv2, CLIP, SigLIP), cached
    concerto  frozen 3D point features onto a 14x14 grid by S2D, cached
    vggt      the last tokens of VGGT's aggregator, cached
    pointing  slots that point at the cached cloud by words, and where they are from the hand; see `stages.pointing`

Shape legend: B moments, N tokens of a part, D model width, E width of a frozen encoder.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from data_specs.shards import GRID
from stages.language import LanguageTokens
from stages.layers import Standardise
from stages.patches import PATCH, patchify
from stages.pointing import Pointing, PointingConfig
from stages.s2d import Coords, S2DConfig, SparseToDense
from stages.vision_part import VisionPart, VisionTokens

RGB = "rgb"
"""The store's own 224x224 frame, in `PolicyBatch.images` and among the columns."""


@dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """`views` names the cameras, joined by +: `rgb` is the store's frame. Pictures of other sizes are resized to it."""

    views: str = RGB


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Cached image encoders: `names` as in `vision/NAME`, joined by +, all of `channels`.

    `special` tokens without a place (class, registers) come before the patches.
    """

    names: str = "dinov2"
    channels: int = 768
    special: int = 0

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders by name."""
        return split_names(self.names)


@dataclass(frozen=True, kw_only=True)
class ConcertoConfig:
    """Cached 3D tokens of `channels` through S2D of these sizes; see `S2DConfig`. A `grid` of fewer cells is faster."""

    channels: int = 512
    dim: int = 512
    grid: int = GRID
    layers: int = 2
    heads: int = 8
    hidden: int = 2048
    coords: Coords = "both"


@dataclass(frozen=True, kw_only=True)
class VGGTTokensConfig:
    """Cached aggregator tokens `vision/vggt`: `special` ones (camera, registers) before the patches."""

    channels: int = 2048
    special: int = 5


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """`parts` names what the policy sees, joined by + (empty: nothing); the other fields are the parts' own configs."""

    parts: str = "patch"
    patch: PatchesConfig = field(default_factory=PatchesConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    concerto: ConcertoConfig = field(default_factory=ConcertoConfig)
    vggt: VGGTTokensConfig = field(default_factory=VGGTTokensConfig)
    pointing: PointingConfig = field(default_factory=PointingConfig)

    @property
    def names(self) -> tuple[str, ...]:
        """The parts by name."""
        return split_names(self.parts)


class PatchVision(VisionPart):
    """16x16 patches of one camera's picture, embedded (Dosovitskiy et al. 2021)."""

    place: Tensor

    def __init__(self, view: str, dim: int) -> None:
        super().__init__()
        self.view = view
        self.columns = (RGB if view == RGB else f"views/{view}",)
        self.embed = nn.Linear(PATCH * PATCH * 3, dim)
        self.register_buffer("place", grid_places(GRID, GRID), persistent=False)

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """196 tokens. ValueError when the picture was not decoded."""
        if self.view not in batch.images:
            raise ValueError(
                f"the batch has no pictures of {self.view!r}, only {sorted(batch.images) or 'none'}: read the column "
                f"{self.columns[0]!r}, decode it and put it into PolicyBatch.images"
            )
        tokens = self.embed(patchify(_square(batch.images[self.view])) * 2 - 1)
        return VisionTokens(tokens=tokens, place=self.place, grid=(GRID, GRID))


class FrozenVision(VisionPart):
    """Cached tokens of a frozen encoder: standardised by channel, then E → D."""

    def __init__(self, name: str, channels: int, special: int, dim: int) -> None:
        super().__init__()
        self.name, self.special = name, special
        self.columns = (f"vision/{name}",)
        self.features = Standardise(channels)
        self.project = nn.Linear(channels, dim)

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """The encoder's tokens. ValueError when it is another encoder, or its patches are no square grid."""
        feat = frozen_tokens(batch, self.name, len(self.features.mean))
        side = math.isqrt(feat.shape[1] - self.special)
        if side**2 != feat.shape[1] - self.special:
            raise ValueError(
                f"vision/{self.name} has {feat.shape[1]} tokens, {self.special} of them special: the others are no "
                "square grid; set how many come before the patches (special)"
            )
        place = grid_places(side, side, special=self.special, device=feat.device)
        return VisionTokens(tokens=self.project(self.features(feat)), place=place, grid=(side, side))

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The encoder's tokens."""
        yield self.features, frozen_tokens(batch, self.name, len(self.features.mean)).flatten(0, 1)


class ConcertoVision(VisionPart):
    """Cached 3D tokens: standardised by channel, S2D, then to the model's width."""

    place: Tensor

    def __init__(self, config: ConcertoConfig, dim: int, *, checkpoint: bool = False) -> None:
        super().__init__()
        self.columns = ("tokens",)
        self.features = Standardise(config.channels)
        self.s2d = SparseToDense(
            S2DConfig(
                channels=config.channels,
                dim=config.dim,
                grid=config.grid,
                layers=config.layers,
                heads=config.heads,
                hidden=config.hidden,
                coords=config.coords,
                checkpoint=checkpoint,
            )
        )
        self.project = nn.Linear(config.dim, dim)
        self.grid = (config.grid, config.grid)
        self.register_buffer("place", grid_places(*self.grid), persistent=False)

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """A token a cell. ValueError when the store's tokens have other channels."""
        tokens = batch.frames.need_tokens()
        if tokens.feat.shape[-1] != len(self.features.mean):
            raise ValueError(
                f"the tokens have {tokens.feat.shape[-1]} channels and the policy was built for "
                f"{len(self.features.mean)}: build it with those of the store (vision.concerto.channels)"
            )
        dense = self.s2d(tokens.with_feat(self.features(tokens.feat))).flatten(1, 2)
        return VisionTokens(tokens=self.project(dense), place=self.place, grid=self.grid)

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The features of the distinct tokens."""
        yield self.features, batch.frames.need_tokens().feat


def build_vision(config: VisionConfig, dim: int, *, checkpoint: bool = False) -> dict[str, VisionPart]:
    """The parts that the config names, in its order. ValueError for one that there is not."""
    parts: dict[str, VisionPart] = {}
    for name in config.names:
        match name:
            case "patch":
                for view in split_names(config.patch.views):
                    parts["patch" if view == RGB else _key("patch", view)] = PatchVision(view, dim)
            case "tower":
                tower = config.tower
                for encoder in tower.encoders:
                    parts[_key("tower", encoder)] = FrozenVision(encoder, tower.channels, tower.special, dim)
            case "concerto":
                parts[name] = ConcertoVision(config.concerto, dim, checkpoint=checkpoint)
            case "vggt":
                parts[name] = FrozenVision("vggt", config.vggt.channels, config.vggt.special, dim)
            case "pointing":
                parts[name] = Pointing(config.pointing, dim)
            case _:
                raise ValueError(
                    f"there is no vision {name!r}: choose of patch, tower, concerto, vggt, pointing, joined by +"
                )
    return parts


def split_names(names: str) -> tuple[str, ...]:
    """`a+b` as (a, b). ValueError for a name that comes twice."""
    found = tuple(name for name in names.split("+") if name)
    if len(set(found)) < len(found):
        raise ValueError(f"{names!r} names something twice")
    return found


def _key(kind: str, name: str) -> str:
    """A name that a module may have."""
    return f"{kind}_{name.replace('.', '_')}"


def frozen_tokens(batch: PolicyBatch, name: str, channels: int) -> Tensor:
    """`vision/NAME` [B,N,E]. ValueError when the batch lacks it, or it has another width."""
    if name not in batch.frames.vision:
        raise ValueError(
            f"the batch has no vision/{name}, only {sorted(batch.frames.vision) or 'none'}: ask for the column, and "
            "extract with that encoder"
        )
    feat = batch.frames.vision[name]
    if feat.shape[-1] != channels:
        raise ValueError(
            f"vision/{name} has {feat.shape[-1]} channels and the policy was built for {channels}: build it with those "
            "of the store (channels)"
        )
    return feat


def grid_places(rows: int, columns: int, *, special: int = 0, device: torch.device | None = None) -> Tensor:
    """Middles of a picture's cells, row by row, f4 [1, special + rows * columns, 2]; special ones first, as NaN."""
    middles = [(torch.arange(count, device=device) + 0.5) / count for count in (rows, columns)]
    row, column = torch.meshgrid(*middles, indexing="ij")
    places = torch.stack([row, column], dim=-1).flatten(0, 1)
    return torch.cat([places.new_full((special, 2), math.nan), places])[None]


def _square(pixels_BHW3: Tensor) -> Tensor:
    """Pictures of any size as u1 [B,224,224,3], the aspect ratio given up; those of that size as they are."""
    side = GRID * PATCH
    if pixels_BHW3.shape[1:3] == (side, side):
        return pixels_BHW3
    channels_first = pixels_BHW3.movedim(-1, 1).float()
    resized = F.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
