"""The latent action model: what happened between two frames, as 4 discrete codes, learned by foreseeing the later one.

    frames ─▶ S2D ─▶ spatial encoder ─▶ temporal encoder ─▶ keypoints ─▶ difference ─▶ NSVQ ─▶ 4 codes
                           └─ first frame, gradient stopped ─▶ decoder ◀─ latents ─┘
                                                                  └─▶ later frame, and how what moves moved

Shape legend: B pairs, Q = 196 cells, D model width, K code tokens, L code width.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_specs.actions import ACTION_NAME
from data_specs.batches import Batch, FrameBatch, PairBatch
from data_specs.motion import (
    CELLS_COLUMN,
    CELLS_NAME,
    CELLS_WIDTH,
    PARTS,
    STATISTICS_COLUMN,
    STATISTICS_NAME,
    STATISTICS_WIDTH,
)
from data_specs.shards import GRID
from stages.decoder import Decoder, DecoderConfig
from stages.draw import Draw
from stages.keypoints import Keypoints, KeypointsConfig, Scene
from stages.layers import Standardise, parameters_of
from stages.nsvq import NSVQ, NSVQConfig
from stages.patches import PatchConfig, PatchEncoder
from stages.raster import points_of_cells, raster_coords
from stages.s2d import Coords, S2DConfig, SparseToDense
from stages.spatial import SpatialConfig, SpatialEncoder
from stages.targets import TargetConfig, Targets, mean_square
from stages.temporal import TemporalConfig, TemporalEncoder

Vision = Literal["points", "patch"]


@dataclass(frozen=True, kw_only=True)
class LAQConfig:
    """Sizes of a `LatentActionModel`; the configs of its parts follow from it.

    Attributes:
        vision: `points` reads the frozen point features through S2D; `patch` reads the 224x224 pixels instead.
        channels: of the store's tokens. dim, heads, hidden: width, heads and FFN width of all transformers.
        s2d_layers, spatial_layers, temporal_layers, decoder_layers: blocks of each part.
        coords: where S2D takes the tokens' coordinates: none, keys, or both (keys and values).
        motion: the encoder sees what moves in 3D (`data_specs.motion`), and keypoints weigh cells by it; else by all
            points, and only the scene itself is seen.
        slots, read: keypoints a frame, and the numbers beside its place that each reads there.
        codes, tokens, code_dim: of the codebook, codes a pair, width of a code.
        actions: dimensions of the action, where `targets.action` asks for it.
        residual: the decoder predicts the change of the targets. targets: weights of what it predicts.
        checkpoint: recompute activations in the backward pass.
    """

    vision: Vision = "points"
    channels: int = 512
    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    s2d_layers: int = 2
    spatial_layers: int = 4
    temporal_layers: int = 4
    decoder_layers: int = 2
    coords: Coords = "both"
    motion: bool = True
    slots: int = 16
    read: int = 16
    codes: int = 256
    tokens: int = 4
    code_dim: int = 2
    actions: int = 0
    residual: bool = True
    targets: TargetConfig = field(default_factory=TargetConfig)
    checkpoint: bool = False

    def shared(self) -> dict[str, Any]:
        """What the configs of all parts have in common."""
        return {"dim": self.dim, "heads": self.heads, "hidden": self.hidden, "checkpoint": self.checkpoint}


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentActions(Batch):
    """Latent actions of B pairs.

    Attributes:
        codes: i8 [B,K]. quantised: f4 [B,K,L], their vectors. continuous: f4 [B,K,L], before quantisation.
        distance: f4 [B,K], from continuous to quantised.
    """

    codes: Tensor
    quantised: Tensor
    continuous: Tensor
    distance: Tensor


class FrameEncoder(nn.Module):
    """What a frame is: its points (or pixels) onto the grid, then the spatial encoder; FrameBatch → Scene of [B,Q]."""

    places: Tensor

    def __init__(self, config: LAQConfig) -> None:
        super().__init__()
        shared = config.shared()
        points = config.vision == "points"
        self.vision: SparseToDense | PatchEncoder = (
            SparseToDense(S2DConfig(channels=config.channels, layers=config.s2d_layers, coords=config.coords, **shared))
            if points
            else PatchEncoder(PatchConfig(layers=config.s2d_layers, **shared))
        )
        self.motion = nn.Linear(CELLS_WIDTH, config.dim) if config.motion else None
        self.spatial = SpatialEncoder(SpatialConfig(channels=config.dim, layers=config.spatial_layers, **shared))
        self.register_buffer("places", _cell_places(), persistent=False)
        self.columns: tuple[str, ...] = ("tokens",) if points else ("rgb",)
        if config.motion:
            self.columns += (CELLS_COLUMN, STATISTICS_COLUMN)
        elif points:
            self.columns += ("cells",)

    def forward(self, frames: FrameBatch) -> Scene:
        """Features of the cells, how much counts in each, and where it is."""
        if isinstance(self.vision, PatchEncoder):
            dense = self.vision(frames.need_pixels())
        else:
            dense = self.vision(frames.need_tokens())
        dense = dense.flatten(1, -2)
        statistics = dense.new_zeros(len(dense), 0)
        if self.motion is not None:
            statistics = frames.extra[STATISTICS_NAME]
            cells = frames.extra[CELLS_NAME].float()
            weight, coord = cells[..., 0], cells[..., 1:]
            dense = dense + self.motion(torch.cat([weight[..., None], weight[..., None] * coord], dim=-1))
        elif isinstance(self.vision, SparseToDense):
            tokens, triplets = frames.need_tokens(), frames.need_cells()
            weight = points_of_cells(triplets)
            weight, coord = weight / weight.sum(1, keepdim=True), raster_coords(tokens, triplets)
        else:
            weight = torch.ones(dense.shape[:2], device=dense.device)
            coord = self.places.expand(len(dense), -1, -1)
        return Scene(feat=self.spatial(dense), weight=weight, coord=coord, statistics=statistics)


def _cell_places() -> Tensor:
    """Where a cell is in the picture, f4 [Q,3]: right and down in [-1, 1], and 0."""
    axis = torch.linspace(-1, 1, GRID)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([column, row, torch.zeros_like(row)], dim=-1).flatten(0, 1)


class LatentActionModel(nn.Module):
    """Pairs of frames → loss and metrics; `encode` gives their codes, `decode` what codes do to a frame.

    Attributes:
        columns: what it reads of a store. Where `rgb` is among them, the caller decodes the images
            (`FrameBatch.with_pixels`).
    """

    emphasis: Tensor

    def __init__(self, config: LAQConfig) -> None:
        super().__init__()
        self.config = config
        shared = config.shared()
        self.features = Standardise(config.channels)
        self.change = nn.ModuleDict(
            {STATISTICS_NAME: Standardise(STATISTICS_WIDTH), ACTION_NAME: Standardise(config.actions)}
        )
        emphasis = torch.cat([torch.full((width,), weight) for _, width, weight in PARTS])
        self.register_buffer("emphasis", emphasis, persistent=False)
        self.encoder = FrameEncoder(config)
        self.temporal = TemporalEncoder(TemporalConfig(layers=config.temporal_layers, **shared))
        self.keypoints = Keypoints(
            KeypointsConfig(
                dim=config.dim,
                slots=config.slots,
                read=config.read,
                statistics=STATISTICS_WIDTH if config.motion else 0,
                tokens=config.tokens,
                code_dim=config.code_dim,
            )
        )
        self.quantiser = NSVQ(NSVQConfig(dim=config.code_dim, codes=config.codes, tokens=config.tokens))
        self.targets = Targets(config.targets, config.channels, config.actions)
        self.decoder = Decoder(
            DecoderConfig(
                layers=config.decoder_layers,
                code_dim=config.code_dim,
                tokens=config.tokens,
                residual=config.residual,
                **shared,
            ),
            cells=self.targets.cell_widths,
            whole=self.targets.whole_widths,
        )
        self.columns = tuple(sorted({*self.encoder.columns, *self.targets.columns}))

    def forward(self, batch: PairBatch, draw: Draw | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and detached scalars by name. `draw` gives the noise of the quantiser (see `NSVQ.forward`).

        `loss/NAME` is the mean squared error of a target over the cells that have points in both frames, `copy/NAME`
        that of copying the first frame; `codes_used` how many different codes the batch chose; `distance` the mean
        length of the quantisation error.
        """
        batch = self._standardised(batch)
        first_BQD, continuous_BKL = self._latents(batch)
        quantised_BKL, codes_BK = self.quantiser(continuous_BKL, draw)
        before, seen_before = self.targets(batch.first)
        after, seen_after = self.targets(batch.second)
        predicted = self.decoder(first_BQD, before, quantised_BKL)
        loss = quantised_BKL.new_zeros(())
        metrics = {}
        for name, weight in self.targets.weights.items():
            seen = seen_before[name] & seen_after[name]
            part = mean_square(predicted[name], after[name], seen)
            loss = loss + weight * part
            metrics[f"loss/{name}"] = part.detach()
            metrics[f"copy/{name}"] = mean_square(before[name], after[name], seen)
        with torch.no_grad():
            chosen = torch.zeros_like(self.quantiser.window, dtype=torch.float32)
            metrics["codes_used"] = chosen.index_fill_(0, codes_BK.flatten(), 1.0).sum()
            metrics["distance"] = _distance(continuous_BKL, self.quantiser.lookup(codes_BK)).mean()
        return loss, metrics

    def encode(self, batch: PairBatch) -> LatentActions:
        """The latent action of each pair, by hard lookup also in training."""
        _, continuous = self._latents(self._standardised(batch))
        continuous = continuous.float()
        codes = self.quantiser.nearest(continuous)
        quantised = self.quantiser.lookup(codes)
        return LatentActions(
            codes=codes, quantised=quantised, continuous=continuous, distance=_distance(continuous, quantised)
        )

    def decode(self, first: FrameBatch, codes_BK: Tensor) -> dict[str, Tensor]:
        """What codes [B,K] make of frames: predicted targets by name, in the units of the data.

        `features` [B,196,C], `coords` [B,196,3], `pixels` [B,224,224,3] in [0,1], `motion` [B,1,21], `action` [B,1,A].
        ValueError unless there are K codes a frame.
        """
        if codes_BK.shape != (len(first), self.config.tokens):
            raise ValueError(
                f"codes have shape {list(codes_BK.shape)}, expected {[len(first), self.config.tokens]}: "
                f"{self.config.tokens} codes a frame"
            )
        first = self._standardised_frames(first)
        values, _ = self.targets(first)
        out = self.targets.output(self.decoder(self.encoder(first).feat, values, self.quantiser.lookup(codes_BK)))
        if "features" in out:
            out["features"] = self.features.undo(out["features"])
        if "motion" in out:
            out["motion"] = self.change_of(STATISTICS_NAME).undo(out["motion"] / self.emphasis)
        if "action" in out:
            out["action"] = self.change_of(ACTION_NAME).undo(out["action"])
        return out

    def change_of(self, name: str) -> Standardise:
        """The statistics of how much the numbers of a whole frame change in a pair, by their key in `extra`."""
        found = self.change[name]
        assert isinstance(found, Standardise)
        return found

    def _standardised(self, batch: PairBatch) -> PairBatch:
        return PairBatch(first=self._standardised_frames(batch.first), second=self._standardised_frames(batch.second))

    def _standardised_frames(self, frames: FrameBatch) -> FrameBatch:
        """The frames as encoder and targets see them: standardised, whole frames by how much they change in a pair."""
        extra = dict(frames.extra)
        if STATISTICS_NAME in extra:
            known = known_motion(extra[STATISTICS_NAME])
            extra[STATISTICS_NAME] = self.emphasis * self.change_of(STATISTICS_NAME)(known)
        if ACTION_NAME in extra and self.config.actions:
            extra[ACTION_NAME] = self.change_of(ACTION_NAME)(extra[ACTION_NAME])
        if "tokens" not in self.columns:
            return replace(frames, extra=extra)
        tokens = frames.need_tokens()
        if tokens.feat.shape[-1] != self.config.channels:
            raise ValueError(
                f"the tokens have {tokens.feat.shape[-1]} channels and the model was built for {self.config.channels}: "
                "build it with the channels of the store"
            )
        return replace(frames, tokens=tokens.with_feat(self.features(tokens.feat)), extra=extra)

    def _latents(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Features of the first frame [B,Q,D] and continuous latents [B,K,L]."""
        first, second = self.encoder(batch.first), self.encoder(batch.second)
        scenes = Scene.stack([first, second])
        return first.feat, self.keypoints(replace(scenes, feat=self.temporal(scenes.feat)))


def known_motion(statistics_BS: Tensor) -> Tensor:
    """Motion statistics with those of frames in which nothing moves as NaN: not a place, but no place."""
    return torch.where(statistics_BS[:, :1] > 0, statistics_BS, torch.nan)


def _distance(a_BKL: Tensor, b_BKL: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(a_BKL.float() - b_BKL.float(), dim=-1)
    return distance


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """Trainable parameters of a part, beside those of the system's description (None where it names none)."""

    part: str
    parameters: int
    described: int | None
    note: str = ""


def parameter_table(model: LatentActionModel) -> list[ParameterRow]:
    """The model's parts and their trainable parameters; the last row is the sum."""
    spatial = model.encoder.spatial
    points = isinstance(model.encoder.vision, SparseToDense)
    encoders = parameters_of(spatial) - parameters_of(spatial.projection) + parameters_of(model.temporal)
    rows = [
        ParameterRow(
            part="S2D" if points else "patch encoder",
            parameters=parameters_of(model.encoder.vision),
            described=4_200_000 if points else None,
            note="two layers of {cross-attention, FFN 512→2048→512} are 6.3M, the rest 0.1M to 0.4M" if points else "",
        ),
        ParameterRow(
            part="projection",
            parameters=parameters_of(spatial.projection) + parameters_of(model.encoder.motion),
            described=500_000,
        ),
        ParameterRow(
            part="spatial encoder",
            parameters=encoders,
            described=25_000_000,
            note=f"{len(spatial.blocks)} layers over the cells and {len(model.temporal.blocks)} over the frames: "
            "8 layers of this width are 25.2M",
        ),
        ParameterRow(
            part="NSVQ",
            parameters=parameters_of(model.keypoints) + parameters_of(model.quantiser) + parameters_of(model.decoder),
            described=12_000_000,
            note=f"down to the codes {parameters_of(model.keypoints):,}, codebook {parameters_of(model.quantiser):,}, "
            f"decoder {parameters_of(model.decoder):,}",
        ),
    ]
    total = parameters_of(model)
    assert total == sum(row.parameters for row in rows), "every parameter belongs to one part"
    return [*rows, ParameterRow(part="total", parameters=total, described=42_000_000)]
