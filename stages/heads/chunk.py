"""The plain head: a chunk of actions at once, by regression.

Shape legend: B moments, N action queries, D model width, H steps, A dimensions of an action.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.draw import Draw
from stages.heads.base import Head, HeadSizes, unpadded_mean
from stages.layers import feed_forward


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """`hidden` width of the MLP.

    `error`: l1 (the median, as ACT and OpenVLA-OFT), l2 (the mean) or huber, which is l2 for what is less than `delta`
    off, in normalised units, and l1 beyond. Where most labels of a dimension are 0 (a hand that turns now and then), l1
    has a minimum at predicting 0 always, whatever the features tell; it takes l2 near 0 to get out of there.
    """

    hidden: int = 768
    error: Literal["l1", "l2", "huber"] = "l1"
    delta: float = 0.5


class ChunkHead(Head):
    """Queries → steps by a learned mixture, which starts as interpolation along the chunk; then an MLP a step."""

    def __init__(self, config: ChunkConfig, sizes: HeadSizes) -> None:
        super().__init__()
        if config.error not in ("l1", "l2", "huber"):
            raise ValueError(f"there is no error {config.error!r}: choose l1, l2 or huber")
        if not config.delta > 0:
            raise ValueError(f"chunk.delta is {config.delta}, expected above 0: for none of it choose error=l1")
        self.config = config
        self.mix = nn.Parameter(interpolation(sizes.horizon, sizes.queries))
        self.mlp = feed_forward(sizes.dim, config.hidden, sizes.action)

    def loss(
        self,
        features_BND: Tensor,
        actions_BHA: Tensor,
        is_pad_BH: Tensor,
        draw: Draw | None = None,
        *,
        state_BS: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The error, and `l1`: the mean absolute error in normalised units."""
        predicted = self.act(features_BND)
        distance = (predicted - actions_BHA).abs()
        if self.config.error == "l1":
            loss = unpadded_mean(distance, is_pad_BH)
        elif self.config.error == "l2":
            loss = unpadded_mean(distance.square(), is_pad_BH)
        else:
            smooth = F.smooth_l1_loss(predicted, actions_BHA, reduction="none", beta=self.config.delta)
            loss = unpadded_mean(smooth, is_pad_BH)
        return loss, {"l1": unpadded_mean(distance.detach(), is_pad_BH)}

    def act(self, features_BND: Tensor, draw: Draw | None = None) -> Tensor:
        """[B,H,A]."""
        steps_BHD = torch.einsum("hn,bnd->bhd", self.mix.to(features_BND.dtype), features_BND)
        actions: Tensor = self.mlp(steps_BHD)
        return actions.float()


def interpolation(steps: int, queries: int) -> Tensor:
    """Weights f4 [steps, queries] that read `steps` places along a line of `queries` values; rows sum to 1."""
    place = torch.linspace(0, queries - 1, steps)[:, None]
    return (1 - (place - torch.arange(queries)).abs()).clamp_min(0)
