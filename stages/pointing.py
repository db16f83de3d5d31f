"""Slots that point at the cloud by words, and what the hand needs to know of where they point.

    instruction ─▶ role queries ─┐
    points (colour, height, frozen feature of their token) ─▶ keys ─▶ softmax over the points ─▶ place of each slot
                                          points around it, in the hand's frame ─▶ its shape ─┴─▶ slot tokens
                    hand, slots, each from each other, and what is to be done ─▶ network ─▶ added to the action queries

A slot is a role that an instruction gives to a thing ("push the red cube to the blue mat": what is handled, and where
it goes). It attends to single points, not to coarse cells, which mix the colours of a thing and of what it stands on,
and its place is the mean of the points that it attends to (a spatial softmax, Finn et al. 2016, in 3D), of those where
most of its attention is. All that is handed on is relative to the hand and turned into its yaw frame, so that a scene
that is moved and turned about the vertical together with the hand gives the same tokens; only heights over the table
remain.

Gradients of actions alone do not find what words mean: a policy that sees a few hundred instructions learns them by
heart before. Where the batch has hindsight targets (`data_specs.pointing`: what left its place in the demonstration,
where it arrived, where the hand ended), a slot learns to attend to points there.

Shape legend: B moments, P points, S slots, n points around a slot, L language tokens, D model width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_specs.batches import CloudBatch, PolicyBatch
from data_specs.pointing import POINTING_COLUMN, POINTING_NAME, SLOTS
from stages.clouds import coordinates, owners, unpack_clouds
from stages.hand_frame import BEFORE_FINGERS, turned, yaw_of
from stages.language import LanguageTokens
from stages.layers import Standardise
from stages.outlines import LIES, Around, Outlines, lies, nearest, settled, weigh
from stages.points import camera_centre
from stages.roles import Roles
from stages.vision_part import VisionPart, VisionTokens

_METRES = 10.0
"""Lengths are told to the networks in units of 10 cm."""

_FINGERS = 25.0
"""Fingers are told in units of 4 cm."""


@dataclass(frozen=True, kw_only=True)
class PointingConfig:
    """Sizes of a `Pointing`.

    Attributes:
        channels: of the store's tokens. features: numbers that a key takes of them; 0: colour and height alone.
        points: of each frame among which a slot looks while training, drawn anew each time; all when acting. picture:
            side of the stored frames in pixels.
        text, hidden: widths of the instruction's encoder and of the keys' network. key: width of queries and keys.
        shape: width of the network over the points around a slot; outline: numbers that it gives. nearest: how many of
            all points are looked at there, in training as when acting: the few of a thing that are among those drawn do
            not say how it is turned. around: how far they lie from the slot at most, metres.
        task: numbers that the instruction gives to the network over hand and slots; relation: its width; relations: its
            layers.
        fingers: dimensions of the state after position and orientation.
        thing, goal: metres from a hindsight target, seen from above, within which points are counted as it.
        colour_noise: deviation of what training adds to colours, of 1. place_noise: to the slots' places, metres, so
            that the policy bears with pointing that is a little off. outline_noise, task_noise: to numbers in -1 … 1,
            so that they cannot say which demonstration this is. word_noise: to words with deviation 1, and to which of
            them are taken, so that a colour is read where it stands: a language model leaves weak traces of it in all
            words that follow.
    """

    channels: int = 512
    features: int = 16
    points: int = 1024
    picture: int = 224
    text: int = 64
    hidden: int = 64
    key: int = 32
    shape: int = 64
    outline: int = 8
    task: int = 8
    nearest: int = 128
    around: float = 0.09
    over: float = 0.0
    relation: int = 256
    relations: int = 3
    fingers: int = 2
    thing: float = 0.035
    goal: float = 0.05
    colour_noise: float = 0.02
    place_noise: float = 0.004
    outline_noise: float = 0.05
    task_noise: float = 0.3
    word_noise: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pointed:
    """Where slots point.

    Attributes:
        cloud: the points looked at. weight: f4 [B,S,P], of each point for each slot, sums to 1.
        mean: f4 [B,S,3], of the points by weight, world, metres: on the side that the camera sees.
        around: the points around that.
        place: f4 [B,S,3], the middle of what is pointed at.
        task: f4 [B,T], what the instruction asks to be done, in -1 … 1.
    """

    cloud: CloudBatch
    weight: Tensor
    mean: Tensor
    around: Around
    place: Tensor
    task: Tensor


class Pointing(VisionPart):
    """PolicyBatch with points, tokens, state and an instruction → S slot tokens and a summary.

    Needs depth and camera in the world of the robot's state (`geometry.source=sensor`), metres, z up; states begin
    with the grip's position and its orientation as axis-angle, as in `stages.hand_frame`.
    """

    def __init__(self, config: PointingConfig, dim: int) -> None:
        super().__init__()
        if config.over < 0:
            raise ValueError(f"pointing.over is {config.over}, expected metres over the grip, or 0 for no limit")
        self.config = config
        self.columns = ("camera", "points", "state", "tokens")
        self.targets = (POINTING_COLUMN,)
        self.roles = Roles(dim, config.text, len(SLOTS), config.key, config.task, config.word_noise)
        self.features = Standardise(config.channels) if config.features else None
        self.reduce = nn.Linear(config.channels, config.features) if config.features else None
        self.colour = _two_layers(7 + config.features, config.hidden, config.key)
        self.height = _two_layers(1, config.hidden, config.key)
        self._scale = 4 / math.sqrt(config.key)
        self.outlines = Outlines(len(SLOTS), config.shape, config.outline)
        slot = _Geometry.place_width + config.outline
        self.slots = nn.Sequential(nn.Linear(slot, dim), nn.LayerNorm(dim), nn.GELU(), nn.Linear(dim, dim))
        count = len(SLOTS)
        pairs = count * (count + 1) // 2
        relation = count * (slot + LIES) + _Geometry.pair_width * pairs + 1 + count + config.fingers + config.task
        layers: list[nn.Module] = []
        for number in range(config.relations):
            width = config.relation
            layers += [nn.Linear(width if number else relation, width), nn.LayerNorm(width), nn.GELU()]
        self.relation = nn.Sequential(*layers, nn.Linear(config.relation, dim))

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """S tokens, their summary, and the losses `thing` and `goal` where the batch has hindsight targets.

        ValueError without an instruction, a state, or, in training, hindsight targets.
        """
        if language is None:
            raise ValueError("pointing needs an instruction: give the policy language (language.channels), or no slots")
        state = batch.need_state()
        pointed = self.point(batch, language)
        tokens, summary = self._tokens(pointed, state)
        wanted = self.training or POINTING_NAME in batch.frames.extra
        losses = self._losses(batch, pointed) if wanted else {}
        return VisionTokens(tokens=tokens, summary=summary, losses=losses)

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The features of the distinct tokens."""
        if self.features is not None:
            yield self.features, batch.frames.need_tokens().feat

    def point(self, batch: PolicyBatch, language: LanguageTokens) -> Pointed:
        """Where the slots point."""
        chosen = self._drawn(batch)
        cloud = unpack_clouds(batch.frames, width=self.config.picture, chosen=chosen)
        light_B13 = self._deviation(cloud.xyz[:, :1])  # of the whole picture
        features = self._reduced(batch)
        query_BSK, task_BT = self.roles(language)

        logit_BSP = self._logits(query_BSK, features, cloud.rgb, light_B13, cloud.xyz, cloud.token)
        logit_BSP = logit_BSP.masked_fill(self._of_the_arm(cloud.xyz, batch)[:, None], -1e4)
        weight_BSP = logit_BSP.masked_fill(cloud.token[:, None] < 0, -torch.inf).softmax(-1)
        mean_BS3 = settled(weight_BSP, cloud.xyz, self.config.around) @ cloud.xyz

        xyz_BSn3, rgb_BSn3, token_BSn = self._nearest(batch, mean_BS3)
        around = weigh(
            self._logits(query_BSK[:, :, None], features, rgb_BSn3, light_B13[:, None], xyz_BSn3, token_BSn)[:, :, 0],
            xyz_BSn3 - mean_BS3[:, :, None],
            (token_BSn >= 0) & ~self._of_the_arm(xyz_BSn3, batch),
            self.config.around,
        )
        camera = batch.frames.camera
        assert camera is not None  # or there would be no cloud
        place_BS3 = self.outlines.middle(around, mean_BS3, camera_centre(camera.extrinsic))
        return Pointed(cloud=cloud, weight=weight_BSP, mean=mean_BS3, around=around, place=place_BS3, task=task_BT)

    def _reduced(self, batch: PolicyBatch) -> tuple[Tensor, Tensor] | None:
        """What keys take of the tokens [T,E], and where those of each frame begin [B]."""
        if self.features is None or self.reduce is None:
            return None
        tokens = batch.frames.need_tokens()
        if tokens.feat.shape[-1] != self.config.channels:
            raise ValueError(
                f"the tokens have {tokens.feat.shape[-1]} channels and the policy was built for "
                f"{self.config.channels}: build it with those of the store (vision.pointing.channels)"
            )
        return self.reduce(self.features(tokens.feat)), tokens.offset[:-1]

    def _drawn(self, batch: PolicyBatch) -> Tensor | None:
        """The places of the points among which slots look: in training some of them, else all (None)."""
        points = batch.frames.points
        if not self.training or points is None or points.pixel.shape[1] <= self.config.points:
            return None
        total = points.pixel.shape[1]
        return torch.randperm(total, device=points.pixel.device)[: self.config.points].sort().values

    def _nearest(self, batch: PolicyBatch, mean_BS3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates [B,S,n,3], colours and tokens of the n points nearest to each slot, of all that there are."""
        points = batch.frames.points
        assert points is not None  # or there would be no cloud
        xyz_BP3, kept_B = coordinates(batch.frames, width=self.config.picture)
        index_BSn = nearest(xyz_BP3, kept_B, mean_BS3, self.config.nearest)
        at = (torch.arange(len(index_BSn), device=index_BSn.device)[:, None, None], index_BSn)
        token_BSn = owners(batch.frames.need_tokens(), index_BSn.flatten(1))[0].view(index_BSn.shape)
        return xyz_BP3[at], points.rgb[at], token_BSn

    def _of_the_arm(self, xyz: Tensor, batch: PolicyBatch) -> Tensor:
        """Which points [B,...,3] are too high over the grip to be of a thing: bool [B,...]."""
        grip_B = batch.need_state()[:, 2]
        highest = grip_B + self.config.over if self.config.over else torch.full_like(grip_B, torch.inf)
        return xyz[..., 2] > highest.view(-1, *[1] * (xyz.ndim - 2))

    def _deviation(self, like: Tensor) -> Tensor:
        """What training adds to colours."""
        if not (self.training and self.config.colour_noise):
            return torch.zeros((), device=like.device).expand(like.shape)
        return 2 * self.config.colour_noise * torch.randn(like.shape, device=like.device)

    def _logits(
        self,
        query: Tensor,
        features: tuple[Tensor, Tensor] | None,
        rgb: Tensor,
        light: Tensor,
        xyz: Tensor,
        token: Tensor,
    ) -> Tensor:
        """How well points [..., n] answer queries [..., s, K]: [..., s, n]; `light` [..., 1, 3] is added to colours."""
        colour = rgb.float() / 127.5 - 1 + light
        colour = colour + self._deviation(colour)
        seen = [colour, colour.square().mean(-1, keepdim=True), _hue(colour)]
        if features is not None:
            reduced_TE, first_B = features
            first = first_B.view(-1, *[1] * (token.ndim - 1))
            seen.append(reduced_TE[(first + token).clamp_min(0)])
        # Added, so that a colour scores alike at every height: that of a thing is known on a mat.
        of_colour = _answers(query, self.colour, torch.cat(seen, dim=-1))
        of_height = _answers(query, self.height, xyz[..., 2:] * _METRES)
        return self._scale * (of_colour + of_height).float()

    def _tokens(self, pointed: Pointed, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        hand_B3, yaw_B = state_BS[:, :3], yaw_of(state_BS)
        outline_BSE = self.outlines(pointed.around, pointed.mean - pointed.place, yaw_B)
        outline_BSE = self._noisy(outline_BSE.tanh(), self.config.outline_noise)
        place_BS3 = self._noisy(pointed.place, self.config.place_noise)
        task_BT = self._noisy(pointed.task, self.config.task_noise)
        heights = torch.cat([hand_B3[:, 2:], place_BS3[..., 2]], dim=-1) * _METRES
        place_BS3 = turned(place_BS3 - hand_B3[:, None], yaw_B[:, None])
        slot_BSE = torch.cat([_Geometry.place(place_BS3), outline_BSE], dim=-1)
        first, second = torch.triu_indices(len(SLOTS), len(SLOTS), offset=1, device=place_BS3.device)
        pairs = torch.cat([place_BS3, place_BS3[:, second] - place_BS3[:, first]], dim=1)
        fingers = state_BS[:, BEFORE_FINGERS:] * _FINGERS
        lies_BSE = lies(pointed.around, pointed.mean - pointed.place, yaw_B)
        told = [slot_BSE.flatten(1), lies_BSE.flatten(1), _Geometry.pair(pairs).flatten(1), heights, fingers, task_BT]
        return self.slots(slot_BSE), self.relation(torch.cat(told, dim=-1))

    def _noisy(self, value: Tensor, deviation: float) -> Tensor:
        return value + deviation * torch.randn_like(value) if self.training and deviation else value

    def _losses(self, batch: PolicyBatch, pointed: Pointed) -> dict[str, Tensor]:
        """By slot: -log of the attention within reach of the target, and how far off the place is, along the table, in
        units of 1 cm; means over the moments that have a target.
        """
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
            count = known_B.sum().clamp_min(1)
            off_B2 = (pointed.place[:, slot, :2] - target_BS4[:, slot, :2]).abs()
            found_B = known_B & (off_B2.amax(-1) < radius)
            losses[name] = total / count
            losses[f"{name}_off"] = 100 * off_B2.mean(-1).masked_fill(~found_B, 0.0).sum() / count
        return losses


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


def _hue(colour: Tensor) -> Tensor:
    """Colours [..., 3] of -1 … 1 without their brightness, 0 for greys: a side in the shade keeps its hue."""
    light = (colour + 1).clamp_min(0)
    return 3 * (light + 0.02) / (light + 0.02).sum(-1, keepdim=True) - 1


def _answers(query: Tensor, network: nn.Sequential, seen: Tensor) -> Tensor:
    """Products [..., s, n] of queries [..., s, K] with the keys [..., n, K] that two layers make of what is seen.

    The second layer is linear: applied to the few queries, not to the many points, it gives the same.
    """
    *first, second = network
    assert isinstance(second, nn.Linear)
    hidden = seen
    for layer in first:
        hidden = layer(hidden)
    asked = query @ second.weight
    return (hidden @ asked.transpose(-1, -2)).transpose(-1, -2) + (query @ second.bias)[..., None]


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
