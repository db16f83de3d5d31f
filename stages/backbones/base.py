"""The one sequence of a policy, and the interface of what mixes it.

Shape legend: B moments, N tokens of the whole sequence, n of one span, D model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.layers import Standardise


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """Tokens of one kind.

    Attributes:
        name: the kind. tokens: f [B or 1,n,D]. mask: bool [B,n], true for real ones; None when all are.
        order: `chain` for words; (rows, columns) for a grid of cells, row by row, which are the last of the tokens;
            None for tokens without neighbours.
    """

    name: str
    tokens: Tensor
    mask: Tensor | None = None
    order: tuple[int, int] | Literal["chain"] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence:
    """Spans one after the other."""

    spans: Sequence[Span]

    def tokens(self, size: int) -> Tensor:
        """All tokens f [B,N,D] of `size` moments."""
        return torch.cat([span.tokens.expand(size, -1, -1) for span in self.spans], dim=1)

    def mask(self, size: int) -> Tensor | None:
        """Which tokens are real, bool [B,N]; None when all are."""
        if all(span.mask is None for span in self.spans):
            return None
        device = self.spans[0].tokens.device
        parts = [
            torch.ones(size, len(span), dtype=torch.bool, device=device) if span.mask is None else span.mask
            for span in self.spans
        ]
        return torch.cat(parts, dim=1)


class Backbone(nn.Module, ABC):
    """Lets all tokens of a policy see each other.

    Attributes:
        columns: what it reads of a store beside the sequence.
    """

    columns: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, sequence: TokenSequence, batch: PolicyBatch) -> Tensor:
        """Features f [B,N,D] of all tokens; those of padding mean nothing, and change no others."""

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The frozen features [n,E] that it reads of the batch, each kind with what standardises it."""
        yield from ()
