"""What all parts of a policy's vision share: what they give, and how they are asked.

Shape legend: B moments, N tokens of a part, D model width, E width of a frozen encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.language import LanguageTokens
from stages.layers import Standardise


@dataclass(frozen=True, kw_only=True, eq=False)
class VisionTokens:
    """Tokens of a part of the vision.

    Attributes:
        tokens: f [B,N,D].
        place: f4 [B or 1,N,2], (row, column) in the picture from 0 to 1, NaN for a token that is at no place; None
            when none is at one.
        mask: bool [B,N], true for real tokens; None when all are.
        grid: (rows, columns) of a grid of cells, row by row, that the last tokens are; None for tokens without order.
        summary: f [B,D], what the part says of the whole moment; it is added to the action queries, so that it comes to
            the head by the shortest way. None when it says nothing.
        losses: auxiliary losses by name, only of a batch that has actions.
    """

    tokens: Tensor
    place: Tensor | None = None
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    summary: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class VisionPart(nn.Module, ABC):
    """A part of the vision.

    Attributes:
        columns: what it reads of a store. Where `rgb` or `views/NAME` are among them, the caller decodes the pictures
            into `PolicyBatch.images`.
        targets: columns that it learns from beside, and does without when it acts.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        """Tokens of the model's width; parts that look for what was said see the instruction's tokens."""

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The frozen features [n,E] of the batch, each kind with what standardises it; nothing for trained pixels."""
        yield from ()
