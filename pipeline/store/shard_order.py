"""The order of an epoch that takes a store's shards one after the other: a function of seed and epoch alone."""

import numpy as np

from data_specs.arrays import Array
from data_specs.records import exclusive_sum
from stages.draw import mix_seed


class ShardOrder:
    """Shards come in an order drawn anew for every epoch; their samples go through a buffer, and are drawn from it.

    Args:
        shard: the number of the shard i8 [n] that each sample is in.
        shards: how many there are; some may have no samples.
        seed: another one, another order.
        buffer: samples from among which each is drawn; 1 leaves those of a shard together.
    """

    def __init__(self, shard: Array, shards: int, *, seed: int, buffer: int) -> None:
        self._by_shard = np.argsort(shard, kind="stable")
        self._start = exclusive_sum(np.bincount(shard, minlength=shards))
        self._seed, self._buffer = seed, buffer

    def __len__(self) -> int:
        return len(self._by_shard)

    def of(self, epoch: int, *, rank: int = 0, world: int = 1) -> Array:
        """The samples i8 of an epoch in order; of `world` ranks each has a stretch of it, by the shards' order."""
        generator = np.random.default_rng(mix_seed(self._seed, epoch))
        shards = generator.permutation(len(self._start) - 1)
        count = np.diff(self._start)[shards]
        ends = exclusive_sum(count)
        first, last = stretch(int(ends[-1]), rank, world)
        parts = []
        for number in range(*_covering(ends, first, last)):
            # the same for every rank that has a part of the shard
            shuffled = np.random.default_rng(mix_seed(self._seed, epoch, int(shards[number])))
            begin = int(self._start[shards[number]])
            inside = begin + shuffled.permutation(int(count[number]))
            low, high = max(first - int(ends[number]), 0), min(last, int(ends[number + 1])) - int(ends[number])
            parts.append(self._by_shard[inside[low:high]])
        samples = np.concatenate(parts) if parts else self._by_shard[:0]
        # each sample waits behind as many others as a draw from the buffer says
        own = np.random.default_rng(mix_seed(self._seed, epoch, rank, 1))
        wait = own.uniform(0.0, self._buffer, len(samples)) if self._buffer > 1 else np.zeros(len(samples))
        return samples[np.argsort(np.arange(len(samples)) + wait, kind="stable")]


def stretch(total: int, rank: int, world: int) -> tuple[int, int]:
    """What a rank has of `total` samples: first:last."""
    return total * rank // world, total * (rank + 1) // world


def _covering(ends: Array, first: int, last: int) -> tuple[int, int]:
    """Numbers of the stretches [ends[i], ends[i+1]) that have some of first:last."""
    if last <= first:
        return 0, 0
    return int(np.searchsorted(ends, first, side="right") - 1), int(np.searchsorted(ends, last, side="left"))
