"""Slots that point at the cloud by words, and what the hand needs to know of where they point.

    instruction ─▶ role queries ─┐
    points (colour, height, frozen feature of their token) ─▶ keys ─▶ softmax over the points ─▶ place of each slot
                                          points around it, in the hand's frame ─▶ its shape ─┴─▶ slot tokens
                                          hand, slots, and each from each other ─▶ network ─────▶ relation token

A slot is a role that an instruction gives to a thing ("push the red cube to the blue mat": what is handled, and where
it goes). It attends to single points, not to coarse cells, which mix the colours of a thing and of what it stands on,
and its place is the mean of the points that it attends to (a spatial softmax, Finn et al. 2016, in 3D). All that is
handed on is relative to the hand and turned into its yaw frame, so that a scene that is moved and turned about the
vertical together with the hand gives the same tokens; only heights over the table remain.

Gradients of actions alone do not find what words mean: a policy that sees a few hundred instructions learns them by
heart before. Where the batch has hindsight targets (`data_specs.pointing`: what left its place in the demonstration,
where it arrived, where the hand ended), a slot learns to attend to points there.

Shape legend: B moments, P points, S slots, n points around a slot, L language tokens, D model width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_specs.batches import CloudBatch, PolicyBatch
from data_specs.pointing import POINTING_COLUMN, POINTING_NAME, SLOTS
from stages.clouds import unpack_clouds
from stages.detr import EncoderLayer, sine_positions_1d
from stages.hand_frame import BEFORE_FINGERS, yaw_of
from stages.language import LanguageTokens
from stages.layers import Standardise
from stages.vision_part import VisionPart, VisionTokens

_METRES = 10.0
"""Lengths are told to the networks in units of 10 cm."""

_FINGERS = 25.0
"""Fingers are told in units of 4 cm."""

_LONGEST_INSTRUCTION = 96


@dataclass(frozen=True, kw_only=True)
class PointingConfig:
    """Sizes of a `Pointing`.

    Attributes:
        channels: of the store's tokens. features: numbers that a key takes of them; 0: colour and height alone.
        points: of each frame while training, drawn anew each time; all are looked at when acting. picture: side of the
            stored frames in pixels.
        text, hidden: widths of the instruction's encoder and of the keys' network. key: width of queries and keys.
        shape: width of what is told of the points around a slot. around: how far those lie from it at most, metres.
        relation: width of the network over hand and slots; relations: its layers.
        fingers: dimensions of the state after position and orientation.
        thing, goal: metres from a hindsight target, seen from above, within which points are counted as it.
        colour_noise: deviation of what training adds to colours, of 1.
    """

    channels: int = 512
    features: int = 16
    points: int = 1024
    picture: int = 224
    text: int = 64
    hidden: int = 64
    key: int = 32
    shape: int = 64
    around: float = 0.09
    relation: int = 256
    relations: int = 3
    fingers: int = 2
    thing: float = 0.035
    goal: float = 0.05
    colour_noise: float = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Pointed:
    """Where slots point.

    Attributes:
        cloud: the points looked at. weight: f4 [B,S,P], of each point for each slot, sums to 1.
        place: f4 [B,S,3], world, metres.
    """

    cloud: CloudBatch
    weight: Tensor
    place: Tensor


class Pointing(VisionPart):
    """PolicyBatch with points, tokens, state and an instruction → S slot tokens and a relation token.

    Needs depth and camera in the world of the robot's state (`geometry.source=sensor`), metres, z up; states begin
    with the grip's position and its orientation as axis-angle, as in `stages.hand_frame`.
    """

    def __init__(self, config: PointingConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.columns = ("camera", "points", "state", "tokens")
        self.targets = (POINTING_COLUMN,)
        self.roles = Roles(dim, config.text, len(SLOTS), config.key)
        self.features = Standardise(config.channels) if config.features else None
        self.reduce = nn.Linear(config.channels, config.features) if config.features else None
        self.keys = nn.Sequential(
            nn.Linear(5 + config.features, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.key)
        )
        self.shape = nn.Sequential(nn.Linear(12, config.shape), nn.GELU(), nn.Linear(config.shape, config.shape))
        self.shape_out = nn.Linear(config.shape, config.shape // 2)
        slot = _Geometry.place_width + config.shape // 2 + 3
        self.slots = nn.Sequential(nn.Linear(slot, dim), nn.LayerNorm(dim), nn.GELU(), nn.Linear(dim, dim))
        count = len(SLOTS)
        pairs = count * (count + 1) // 2
        relation = count * slot + _Geometry.pair_width * pairs + 1 + count + config.fingers
        layers: list[nn.Module] = []
        for number in range(config.relations):
            width = config.relation
            layers += [nn.Linear(width if number else relation, width), nn.LayerNorm(width), nn.GELU()]
        self.relation = nn.Sequential(*layers, nn.Linear(config.relation, dim))

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """S + 1 tokens, and the losses `thing` and `goal` where the batch has hindsight targets.

        ValueError without an instruction, a state, or, in training, hindsight targets.
        """
        if language is None:
            raise ValueError("pointing needs an instruction: give the policy language (language.channels), or no slots")
        state = batch.need_state()
        pointed = self.point(batch, language)
        tokens = self._tokens(pointed, state)
        wanted = self.training or POINTING_NAME in batch.frames.extra
        losses = self._losses(batch, pointed) if wanted else {}
        return VisionTokens(tokens=tokens, losses=losses)

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The features of the distinct tokens."""
        if self.features is not None:
            yield self.features, batch.frames.need_tokens().feat

    def point(self, batch: PolicyBatch, language: LanguageTokens) -> Pointed:
        """Where the slots point."""
        cloud = self._cloud(batch)
        colour_BP3 = cloud.rgb.float() / 127.5 - 1
        if self.training and self.config.colour_noise:
            noise = torch.randn_like(colour_BP3[:, :1]) + torch.randn_like(colour_BP3)
            colour_BP3 = colour_BP3 + 2 * self.config.colour_noise * noise
        height_BP1 = cloud.xyz[..., 2:] * _METRES
        seen = [colour_BP3, colour_BP3.square().mean(-1, keepdim=True), height_BP1]
        if self.features is not None and self.reduce is not None:
            tokens = batch.frames.need_tokens()
            if tokens.feat.shape[-1] != self.config.channels:
                raise ValueError(
                    f"the tokens have {tokens.feat.shape[-1]} channels and the policy was built for "
                    f"{self.config.channels}: build it with those of the store (vision.pointing.channels)"
                )
            reduced_TE = self.reduce(self.features(tokens.feat))
            seen.append(reduced_TE[(tokens.offset[:-1, None] + cloud.token).clamp_min(0)])
        key_BPK = self.keys(torch.cat(seen, dim=-1))
        query_BSK = self.roles(language)
        logit_BSP = torch.einsum("bsk,bpk->bsp", query_BSK, key_BPK).float() / math.sqrt(self.config.key) * 4
        logit_BSP = logit_BSP.masked_fill(cloud.token[:, None] < 0, -torch.inf)
        weight_BSP = logit_BSP.softmax(-1)
        place_BS3 = torch.einsum("bsp,bpd->bsd", weight_BSP, cloud.xyz)
        return Pointed(cloud=cloud, weight=weight_BSP, place=place_BS3)

    def _cloud(self, batch: PolicyBatch) -> CloudBatch:
        chosen = None
        points = batch.frames.points
        if self.training and points is not None and points.pixel.shape[1] > self.config.points:
            total = points.pixel.shape[1]
            chosen = torch.randperm(total, device=points.pixel.device)[: self.config.points].sort().values
        return unpack_clouds(batch.frames, width=self.config.picture, chosen=chosen)

    def _tokens(self, pointed: Pointed, state_BS: Tensor) -> Tensor:
        hand_B3, yaw_B = state_BS[:, :3], yaw_of(state_BS)
        shape_BSE, colour_BS3 = self._around(pointed, yaw_B)
        place_BS3 = _turned(pointed.place - hand_B3[:, None], yaw_B[:, None])
        slot_BSE = torch.cat([_Geometry.place(place_BS3), shape_BSE, colour_BS3], dim=-1)
        first, second = torch.triu_indices(len(SLOTS), len(SLOTS), offset=1, device=place_BS3.device)
        pairs = torch.cat([place_BS3, place_BS3[:, second] - place_BS3[:, first]], dim=1)
        heights = torch.cat([hand_B3[:, 2:], pointed.place[..., 2]], dim=-1) * _METRES
        fingers = state_BS[:, BEFORE_FINGERS:] * _FINGERS
        everything = torch.cat([slot_BSE.flatten(1), _Geometry.pair(pairs).flatten(1), heights, fingers], dim=-1)
        return torch.cat([self.slots(slot_BSE), self.relation(everything)[:, None]], dim=1)

    def _around(self, pointed: Pointed, yaw_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the attended points near each slot look like [B,S,E], turned by the yaw, and their mean colour [B,S,3].

        Circular harmonics of the 2nd and 4th order stand beside the coordinates: under the weights' mean they say how
        a long thing and a square one are turned.
        """
        cloud = pointed.cloud
        count = max(32, cloud.xyz.shape[1] * 3 // 64)
        weight_BSn, index_BSn = pointed.weight.topk(min(count, cloud.xyz.shape[1]), dim=-1)
        sample = torch.arange(len(cloud.xyz), device=cloud.xyz.device)[:, None, None]
        offset = cloud.xyz[sample, index_BSn] - pointed.place[:, :, None]
        colour = cloud.rgb[sample, index_BSn].float() / 127.5 - 1
        near = torch.linalg.vector_norm(offset, dim=-1) < self.config.around
        local = _turned(offset, yaw_B[:, None, None]) * 25
        harmonics = _harmonics(local[..., :2])
        seen = self.shape(torch.cat([local, colour, harmonics], dim=-1))
        share = weight_BSn * near
        share = share / (share.sum(-1, keepdim=True) + 1e-6)
        shape = self.shape_out(torch.einsum("bsn,bsne->bse", share, F.gelu(seen)))
        return shape, torch.einsum("bsn,bsnc->bsc", share, colour)

    def _losses(self, batch: PolicyBatch, pointed: Pointed) -> dict[str, Tensor]:
        """-log of the attention within reach of the targets, mean over the moments that have one."""
        extra = batch.frames.extra
        if POINTING_NAME not in extra:
            raise ValueError(
                f"the batch has no hindsight targets: ask for {POINTING_COLUMN!r}, extracted with robot.pointing=true"
            )
        target_BS4 = extra[POINTING_NAME]
        losses = {}
        for slot, (name, radius) in enumerate(zip(SLOTS, (self.config.thing, self.config.goal), strict=True)):
            away_BP2 = pointed.cloud.xyz[..., :2] - target_BS4[:, slot, None, :2]
            there_BP = (away_BP2.square().sum(-1) < radius**2) & (pointed.cloud.token >= 0)
            mass_B = (pointed.weight[:, slot] * there_BP).sum(-1)
            known_B = (target_BS4[:, slot, 3] > 0) & there_BP.any(-1)
            total = (-(mass_B + 1e-4).log()).masked_fill(~known_B, 0.0).sum()
            losses[name] = total / known_B.sum().clamp_min(1)
        return losses


class Roles(nn.Module):
    """An instruction's tokens [B,L,D] → a query a slot [B,S,K]: learned roles read the words, and the words each other.

    Words are told apart by what they are and by where they stand: the first thing named is not the second.
    """

    positions: Tensor

    def __init__(self, dim: int, width: int, slots: int, key: int) -> None:
        super().__init__()
        self.slots = slots
        self.project = nn.Linear(dim, width)
        self.role = nn.Parameter(torch.randn(1, slots, width) * 0.5)
        self.register_buffer("positions", sine_positions_1d(_LONGEST_INSTRUCTION, width), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(width, 4, 2 * width, 0.0) for _ in range(2))
        self.query = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, key))

    def forward(self, language: LanguageTokens) -> Tensor:
        """[B,S,K]."""
        words_BLE = self.project(language.tokens)
        x = torch.cat([self.role.expand(len(words_BLE), -1, -1), words_BLE], dim=1)
        length = words_BLE.shape[1]
        place = torch.cat([self.positions.new_zeros(self.slots, self.positions.shape[1]), self.positions[:length]])
        hidden = F.pad(~language.mask, (self.slots, 0), value=False)
        for layer in self.layers:
            x = layer(x, place, hidden)
        out: Tensor = self.query(x[:, : self.slots])
        return out


class _Geometry:
    """How places [..., 3] in the hand's frame, metres, are told to a network."""

    octaves = 6
    place_width = 3 + 3 * 2 * octaves
    pair_width = 9

    @classmethod
    def place(cls, place: Tensor) -> Tensor:
        """Coordinates, and sines and cosines of them with wavelengths from 2 m to 6.5 cm."""
        frequency = 3.0 * 2.0 ** torch.arange(cls.octaves, device=place.device)
        angle = (place[..., None] * frequency).flatten(-2)
        return torch.cat([place * _METRES, angle.sin(), angle.cos()], dim=-1)

    @classmethod
    def pair(cls, way: Tensor) -> Tensor:
        """Of a way, seen from above: its direction, the direction modulo half a turn, and how long it is.

        A hand that grasps or pushes may be turned by half a turn, hence the double angle.
        """
        length = (way[..., :2].square().sum(-1, keepdim=True) + 1e-6).sqrt()
        unit = way[..., :2] / length
        double = torch.cat([unit[..., :1].square() - unit[..., 1:].square(), 2 * unit[..., :1] * unit[..., 1:]], dim=-1)
        half = torch.atan2(double[..., 1:], double[..., :1]) / 2
        return torch.cat([unit, double, half, half.cos(), half.sin(), length * _METRES, (-40 * length).exp()], dim=-1)


def _harmonics(xy: Tensor) -> Tensor:
    """[..., 6] of points [..., 2]: r cos and sin of 2 and 4 times the angle (over r for 4), r and its square."""
    x, y = xy.unbind(-1)
    square = x * x + y * y + 1e-4
    radius = square.sqrt()
    cosine2, sine2 = (x * x - y * y) / radius, 2 * x * y / radius
    cosine4, sine4 = (cosine2.square() - sine2.square()) / radius, 2 * cosine2 * sine2 / radius
    return torch.stack([cosine2, sine2, cosine4, sine4, radius, square], dim=-1)


def _turned(way: Tensor, yaw: Tensor) -> Tensor:
    """Ways [..., 3] of the world in the frame of a hand of that yaw."""
    cosine, sine = yaw.cos(), yaw.sin()
    x, y, z = way.unbind(-1)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)
