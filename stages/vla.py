"""The policy: language, vision and the robot's state into a chunk of actions, or into latent actions.

    [language | vision | state | action queries] + token types ─▶ backbone ─▶ features of the queries ─▶ head

Shape legend: B moments, N tokens, D model width, H steps of a chunk, A and S dimensions of action and state.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.backbones.base import Backbone, Span, TokenSequence
from stages.backbones.graph import Connectivity, GraphBackbone, GraphConfig
from stages.backbones.vggt import VGGTBackbone, VGGTBackboneConfig
from stages.draw import Draw
from stages.hand_frame import BEFORE_FINGERS, HandFrame
from stages.heads.act import ACTHead, ACTHeadConfig
from stages.heads.base import Head, HeadSizes
from stages.heads.chunk import ChunkConfig, ChunkHead
from stages.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from stages.heads.latent import LatentConfig, LatentHead
from stages.language import LanguageConfig, LanguageProjector, LanguageTokens
from stages.layers import Standardise, sine_positions_at
from stages.normalise import ActionStateNormaliser, Mode, View
from stages.rotations import RotationConfig, RotationView
from stages.vision import VisionConfig, build_vision
from stages.vision_part import VisionPart, VisionTokens


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What the backbone `vggt` needs beside the policy's sizes; see `VGGTBackboneConfig`."""

    channels: int = 2048
    bottleneck: int = 256
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """Sizes and parts of a `VLA`.

    Attributes:
        dim, depth, heads, hidden: width, layers, heads and FFN width of the backbone.
        queries: action queries. horizon: steps of a chunk, H.
        state, action: dimensions of the robot's (state 0: none is seen).
        objective: `action` learns chunks by `head`; `latent` the codes of a latent action model.
        backbone: `graph`, or `vggt` on cached aggregator tokens. connectivity: of the graph's grids, 4 or 8.
        normalise: how states and actions are normalised. frame: `hand` turns actions into the yaw frame of the hand and
            hides x, y and yaw from the state (`HandFrame`).
        rotation: an absolute rotation in the action, and how the network sees it.
        token_dropout: share of the vision's tokens that training hides. word_dropout: of the instruction's, from all
            but the parts of the vision: few demonstrations shall not be told apart by their wording. state_dropout:
            share of the moments at which it hides the state.
        auxiliary: weight of the losses that the vision's parts bring.
        checkpoint: recompute activations in the backward pass, those of the parts too.
    """

    dim: int = 768
    depth: int = 6
    heads: int = 12
    hidden: int = 3072
    queries: int = 16
    horizon: int = 10
    state: int = 8
    action: int = 7
    objective: Literal["action", "latent"] = "action"
    backbone: Literal["graph", "vggt"] = "graph"
    head: Literal["chunk", "act", "diffusion"] = "chunk"
    connectivity: Connectivity = 4
    normalise: Mode = "quantile"
    frame: Literal["world", "hand"] = "world"
    token_dropout: float = 0.0
    word_dropout: float = 0.0
    state_dropout: float = 0.0
    auxiliary: float = 1.0
    checkpoint: bool = False
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    act: ACTHeadConfig = field(default_factory=ACTHeadConfig)
    diffusion: DiffusionHeadConfig = field(default_factory=DiffusionHeadConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)

    def for_store(self, *, state: int, action: int, channels: Mapping[str, int]) -> "VLAConfig":
        """The config for a store's robot, and its channels by column: `tokens`, `language`, `vision/NAME`."""
        vision, language, adapter = self.vision, self.language, self.adapter
        if "tokens" in channels:
            vision = replace(
                vision,
                concerto=replace(vision.concerto, channels=channels["tokens"]),
                pointing=replace(vision.pointing, channels=channels["tokens"], fingers=max(0, state - BEFORE_FINGERS)),
            )
        if "vision/vggt" in channels:
            vision = replace(vision, vggt=replace(vision.vggt, channels=channels["vision/vggt"]))
            adapter = replace(adapter, channels=channels["vision/vggt"])
        towers = {channels[f"vision/{name}"] for name in vision.tower.encoders if f"vision/{name}" in channels}
        if towers:
            vision = replace(vision, tower=replace(vision.tower, channels=max(towers)))
        if language.channels and "language" in channels:
            language = replace(language, channels=channels["language"])
        return replace(
            self, state=state if self.state else 0, action=action, vision=vision, language=language, adapter=adapter
        )


class VLA(nn.Module):
    """A policy; see `VLAConfig`. One trunk for both objectives, so that latent pretraining can be built upon.

    Attributes:
        columns: what it reads of a store. Where `rgb` or `views/NAME` are among them, the caller decodes the pictures
            into `PolicyBatch.images`.
        targets: columns that auxiliary losses learn from, beside `columns`; none is read when acting.
        horizon: steps of a chunk.
    """

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.horizon = config.horizon
        dim = config.dim
        self.normaliser = ActionStateNormaliser(
            state=config.state, action=config.action, mode=config.normalise, views=_views(config)
        )
        self.language = LanguageProjector(config.language, dim) if config.language.channels else None
        self.vision = nn.ModuleDict(build_vision(config.vision, dim, checkpoint=config.checkpoint))
        self.state = nn.Linear(self.normaliser.state_width, dim) if config.state else None
        self.queries = nn.Parameter(torch.randn(1, config.queries, dim) * 0.02)
        names = [*self.vision, "query"]
        names += ["language"] * (self.language is not None) + ["state"] * (self.state is not None)
        self.types = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.backbone = _backbone(config)
        sizes = HeadSizes(
            dim=dim,
            queries=config.queries,
            horizon=config.horizon,
            action=self.normaliser.action_width,
            state=self.normaliser.state_width,
        )
        self.head: Head | LatentHead = (
            LatentHead(config.latent, sizes) if config.objective == "latent" else _head(config, sizes)
        )
        read = {column for part in self.parts.values() for column in part.columns} | set(self.backbone.columns)
        read |= {"language"} if self.language is not None else set()
        read |= {"state"} if self.state is not None else set()
        self.columns: tuple[str, ...] = tuple(sorted(read))
        self.targets: tuple[str, ...] = tuple(sorted({c for part in self.parts.values() for c in part.targets}))

    @property
    def parts(self) -> dict[str, VisionPart]:
        """The parts of the vision by name."""
        return cast(dict[str, VisionPart], dict(self.vision.items()))

    def forward(self, batch: PolicyBatch, draw: Draw | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and detached scalars by name: those of the head, and `loss/NAME` of auxiliary losses.

        `draw` gives the random numbers of dropout and head. Of longer chunks the first H steps are learned. ValueError
        when the batch lacks what the objective needs: actions with their padding, or codes.
        """
        features, state, auxiliary = self._features(batch, draw, hide=self.training)
        if isinstance(self.head, LatentHead):
            if batch.codes is None:
                raise ValueError("the batch has no codes: label the store with `cla label`, or set objective=action")
            loss, metrics = self.head.loss(features, batch.codes)
        else:
            action, is_pad = batch.need_action()
            if action.shape[1] < self.horizon:
                raise ValueError(
                    f"the chunks have {action.shape[1]} steps and the policy was built for {self.horizon}: set a "
                    "smaller horizon, or extract longer chunks (robot.chunk)"
                )
            normalised = self.normaliser.normalise_action(action[:, : self.horizon], batch.frames.state)
            is_pad = is_pad[:, : self.horizon]
            loss, metrics = self.head.loss(features, normalised, is_pad, draw, state_BS=state)
        for name, value in auxiliary.items():
            loss = loss + self.config.auxiliary * value
            metrics[f"loss/{name}"] = value.detach()
        return loss, metrics

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A] in the dataset's own units. ValueError for a policy that has learned latent actions."""
        if isinstance(self.head, LatentHead):
            raise ValueError("this policy answers with latent actions: train one with objective=action from it first")
        features, _, _ = self._features(batch)
        return self.normaliser.restore_action(self.head.act(features, draw), batch.frames.state)

    def codes(self, batch: PolicyBatch) -> Tensor:
        """The latent actions i8 [B,K]. ValueError for a policy that has learned actions."""
        if not isinstance(self.head, LatentHead):
            raise ValueError("this policy answers with actions, not with latent ones: it has objective=action")
        features, _, _ = self._features(batch)
        return self.head.codes(features)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[PolicyBatch]) -> None:
        """Take mean and deviation by channel of all frozen features, from some training batches of a new run.

        Once, before the first step; never on a trunk that was loaded: it has learned with its own.
        """
        sums: dict[Standardise, list[Tensor]] = {}
        for batch in batches:
            for target, feat in self._frozen_features(batch):
                feat = feat.double()
                new = [feat.new_tensor(len(feat)), feat.sum(0), feat.square().sum(0)]
                sums[target] = [a + b for a, b in zip(sums[target], new, strict=True)] if target in sums else new
        for target, (count, total, squares) in sums.items():
            mean = total / count
            target.set(mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float())

    def _frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        if self.language is not None:
            language = batch.need_language()
            yield self.language.features, language.feat[language.mask]
        for part in self.parts.values():
            yield from part.frozen_features(batch)
        yield from self.backbone.frozen_features(batch)

    def _features(
        self, batch: PolicyBatch, draw: Draw | None = None, *, hide: bool = False
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Features of the queries [B,N,D], the normalised state, and the vision's auxiliary losses.

        `hide`: tokens are left out at random, as the config says.
        """
        config = self.config
        token_dropout, word_dropout, state_dropout = (
            (config.token_dropout, config.word_dropout, config.state_dropout) if hide else (0.0, 0.0, 0.0)
        )
        spans: list[Span] = []
        language: LanguageTokens | None = None
        if self.language is not None:
            language = self.language(batch.need_language())
            heard = _dropped(language.tokens, language.mask, word_dropout, draw)
            spans.append(self._span("language", language.tokens, mask=heard, order="chain"))
        auxiliary: dict[str, Tensor] = {}
        queries: Tensor = self.queries
        for name, part in self.parts.items():
            seen: VisionTokens = part(batch, language)
            auxiliary |= seen.losses
            if seen.summary is not None:
                queries = queries + seen.summary[:, None]
            tokens = seen.tokens
            if seen.place is not None:
                tokens = tokens + sine_positions_at(seen.place, self.config.dim).to(tokens.dtype)
            mask = _dropped(tokens, seen.mask, token_dropout, draw)
            spans.append(self._span(name, tokens, mask=mask, order=seen.grid))
        state = None
        if self.state is not None:
            state = self.normaliser.normalise_state(batch.need_state())
            token = self.state(state)[:, None]
            spans.append(self._span("state", token, mask=_dropped(token, None, state_dropout, draw)))
        spans.append(self._span("query", queries))
        features = self.backbone(TokenSequence(spans=spans), batch)
        return features[:, -self.config.queries :], state, auxiliary

    def _span(
        self,
        name: str,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        order: tuple[int, int] | Literal["chain"] | None = None,
    ) -> Span:
        return Span(name=name, tokens=tokens + self.types[name], mask=mask, order=order)


def _dropped(tokens_BnD: Tensor, mask_Bn: Tensor | None, share: float, draw: Draw | None) -> Tensor | None:
    """The mask without a random share of the tokens."""
    if not share:
        return mask_Bn
    size, count = tokens_BnD.shape[:2]
    random = torch.rand(size, count, device=tokens_BnD.device) if draw is None else draw.uniform(count)
    kept = random >= share
    return kept if mask_Bn is None else kept & mask_Bn


def _views(config: VLAConfig) -> list[View]:
    views: list[View] = []
    if config.frame == "hand":
        views.append(HandFrame(config.state, config.action))
    if config.rotation.start >= 0:
        views.append(RotationView(config.rotation, config.action))
    return views


def _backbone(config: VLAConfig) -> Backbone:
    if config.backbone == "graph":
        return GraphBackbone(
            GraphConfig(
                dim=config.dim,
                depth=config.depth,
                heads=config.heads,
                hidden=config.hidden,
                connectivity=config.connectivity,
                checkpoint=config.checkpoint,
            )
        )
    adapter = config.adapter
    return VGGTBackbone(
        VGGTBackboneConfig(
            channels=adapter.channels,
            bottleneck=adapter.bottleneck,
            adapter_heads=adapter.heads,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            hidden=config.hidden,
            checkpoint=config.checkpoint,
        )
    )


def _head(config: VLAConfig, sizes: HeadSizes) -> Head:
    """The table of the heads."""
    match config.head:
        case "chunk":
            return ChunkHead(config.chunk, sizes)
        case "act":
            return ACTHead(replace(config.act, checkpoint=config.checkpoint), sizes)
        case "diffusion":
            return DiffusionHead(replace(config.diffusion, checkpoint=config.checkpoint), sizes)


def _check(config: VLAConfig) -> None:
    """ValueError for what the fields' types do not rule out."""
    for name, value, choices in (
        ("objective", config.objective, ("action", "latent")),
        ("backbone", config.backbone, ("graph", "vggt")),
        ("head", config.head, ("chunk", "act", "diffusion")),
        ("frame", config.frame, ("world", "hand")),
    ):
        if value not in choices:
            raise ValueError(f"there is no {name} {value!r}: choose {' or '.join(choices)}")
    if config.frame == "hand" and config.rotation.start >= 0:
        raise ValueError("frame=hand is for actions that are deltas: it cannot be used with an absolute rotation")
    for name, share in (
        ("token_dropout", config.token_dropout),
        ("word_dropout", config.word_dropout),
        ("state_dropout", config.state_dropout),
    ):
        if not 0 <= share < 1:
            raise ValueError(f"{name} is a share from 0 to under 1, got {share}")
