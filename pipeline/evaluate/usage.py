"""How a codebook is used, counted over the labels of many pairs."""

from dataclasses import dataclass

import numpy as np

from data_specs.arrays import Array


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeUsage:
    """`counts` i8 [K,V]: how often each of V codes stands at each of K places.

    The places share one codebook: `total` adds them up.
    """

    counts: Array

    @classmethod
    def of(cls, codes: Array, size: int) -> "CodeUsage":
        """Usage by codes i8 [n,K] of a codebook of `size`."""
        return cls(counts=np.stack([np.bincount(column, minlength=size) for column in codes.T]))

    @property
    def total(self) -> Array:
        """How often each code is used at any place, i8 [V]."""
        return np.asarray(self.counts.sum(axis=0))

    @property
    def used(self) -> int:
        """Codes that are used at least once."""
        return int((self.total > 0).sum())

    @property
    def perplexity(self) -> float:
        """The exponential of the entropy of `total`: as many codes used equally often would be as uncertain."""
        return perplexity(self.total)

    def perplexity_by_place(self) -> tuple[float, ...]:
        """The perplexity of each place by itself."""
        return tuple(perplexity(row) for row in self.counts)

    def most_used(self, count: int) -> list[tuple[int, int]]:
        """Up to `count` (place, code), the most used first: every code once, at the place where it is used most."""
        place = self.counts.argmax(axis=0)
        uses = self.counts.max(axis=0)
        order = np.argsort(-uses, kind="stable")[:count]
        return [(int(place[code]), int(code)) for code in order if uses[code] > 0]


def perplexity(counts: Array) -> float:
    """The exponential of the entropy (nats) of a distribution given by counts; 1 when one of them holds all."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
