"""The interface that all action heads share, and the mean over the steps that count.

Shape legend: B moments, N action queries, D model width, H steps of a chunk, A dimensions of an action, S of a state.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from stages.draw import Draw


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """What a head is built for beside its own config.

    Attributes:
        dim: width of the features. queries: how many there are, N. horizon: steps of a chunk, H.
        action, state: dimensions as the network sees them, after `ActionStateNormaliser`.
    """

    dim: int
    queries: int
    horizon: int
    action: int
    state: int = 0


class Head(nn.Module, ABC):
    """Features of the action queries → a chunk of actions. All actions are normalised ones.

    A subclass is built as `TheHead(config, sizes)` of its own frozen config and `HeadSizes`. Random numbers come from
    `draw` where it is given, else from torch's global generator.
    """

    @abstractmethod
    def loss(
        self,
        features_BND: Tensor,
        actions_BHA: Tensor,
        is_pad_BH: Tensor,
        draw: Draw | None = None,
        *,
        state_BS: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a mean over the batch's moments) and detached scalars by name. Padded steps get no gradient.

        `state_BS` is the normalised state, None for a robot without one.
        """

    @abstractmethod
    def act(self, features_BND: Tensor, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A], normalised."""


def unpadded_mean(error_BHA: Tensor, is_pad_BH: Tensor) -> Tensor:
    """Mean error of the steps that are not padding: of every moment over its own, then over the moments.

    So batches can be averaged: the mean of two halves is that of the whole. A moment of nothing but padding counts
    as an error of 0. What a padded step holds changes neither the mean nor any gradient.
    """
    error_BH = error_BHA.float().mean(-1).masked_fill(is_pad_BH, 0.0)
    steps_B = (~is_pad_BH).sum(1).clamp_min(1)
    return (error_BH.sum(1) / steps_B).mean()
