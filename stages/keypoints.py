"""From the cells of two frames to what moved: a few learned points in 3D a frame, and their displacement.

Shape legend: B pairs, W frames of the window, Q = 196 cells, D model width, S slots, E numbers a slot reads of a cell,
M motion statistics of a frame, K code tokens, L code width.
A slot attends to the cells of a frame, each weighted by how much of it moves, and takes the mean of their coordinates:
a keypoint (as in Jakab et al. 2018, in 3D and weighted by what is there). Beside these learned points a frame has the
stored statistics of what moves, where there are any. The latent action is linear in the difference of both between the
later and the earlier frame. So it cannot say where things are, only how they moved; opposite motions have opposite
latents, and a motion in two steps has their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

_FAINT = 1e-3
"""Weight that is added to every cell: a frame in which nothing moves has keypoints, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A frame as the model sees it.

    `feat` f [...,Q,D], features of the cells; `weight` f4 [...,Q], how much each cell counts (points that move);
    `coord` f4 [...,Q,3], where what counts is, in the normalised space; `statistics` f4 [...,M], of the whole frame,
    NaN where they are not known.
    """

    feat: Tensor
    weight: Tensor
    coord: Tensor
    statistics: Tensor

    @classmethod
    def stack(cls, scenes: Sequence["Scene"]) -> "Scene":
        """The frames of a window, [B,...] each, as one of [B,W,...]."""
        return cls(**{f.name: torch.stack([getattr(scene, f.name) for scene in scenes], dim=1) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class KeypointsConfig:
    """`dim` of the cells, `slots`, features `read` by a slot beside its place, `statistics` of a frame (0 for none),
    `tokens` of width `code_dim`.
    """

    dim: int = 512
    slots: int = 16
    read: int = 16
    statistics: int = 0
    tokens: int = 4
    code_dim: int = 32


class Keypoints(nn.Module):
    """Scenes of a window → latents of what changed from its first frame to its last, [B,K,L]."""

    def __init__(self, config: KeypointsConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.dim)
        self.look = nn.Linear(config.dim, config.slots)  # which cells a slot attends to, by what they are
        self.place = nn.Linear(3, config.slots, bias=False)  # and by where they are: low ones, left ones
        self.read = nn.Linear(config.dim, config.read)
        nn.init.normal_(self.place.weight, std=4.0)  # slots start in different corners of what moves
        numbers = config.slots * (3 + config.read) + config.statistics
        self.down = nn.Linear(numbers, config.tokens * config.code_dim, bias=False)

    def forward(self, scenes: Scene) -> Tensor:
        """[B,K,L] of scenes of leading dimensions [B,W].

        Statistics that are not known in one of the two frames are taken not to have changed.
        """
        places = self.of_frames(scenes)
        statistics = scenes.statistics.float()
        change = torch.cat([places[:, -1] - places[:, 0], (statistics[:, -1] - statistics[:, 0]).nan_to_num()], dim=-1)
        latent: Tensor = self.down(change)
        return latent.reshape(len(latent), self.config.tokens, self.config.code_dim)

    def of_frames(self, scenes: Scene) -> Tensor:
        """Keypoints of every frame with what the slots read there, f4 [...,S*(3+E)]."""
        with torch.autocast(scenes.feat.device.type, enabled=False):
            feat, coord = self.norm(scenes.feat.float()), scenes.coord.float()
            logits_QS = self.look(feat) + self.place(coord) + (scenes.weight.float() + _FAINT).log()[..., None]
            attention_SQ = logits_QS.softmax(dim=-2).transpose(-1, -2)
            value_QV = torch.cat([coord, self.read(feat)], dim=-1)
            places: Tensor = (attention_SQ @ value_QV).flatten(-2)
            return places
