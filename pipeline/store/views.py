"""Frames and pairs of a store as datasets that give whole batches to a DataLoader."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, PairBatch
from pipeline.store.handover import hand_over
from pipeline.store.pairs import PairIndex
from pipeline.store.stream import ShardStream

if TYPE_CHECKING:
    from pipeline.store.loader import Store


class FrameView(Dataset[FrameBatch]):
    """Item i is frame i of the store as a batch of one; a DataLoader reads a whole batch at once."""

    def __init__(self, store: "Store", columns: tuple[str, ...]) -> None:
        self.store, self.columns = store, columns

    def __len__(self) -> int:
        return self.store.num_frames

    def __getitem__(self, index: int) -> FrameBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> FrameBatch:
        """The frames as one batch; what a DataLoader calls."""
        return self.store.batch(indices, self.columns)

    def frames(self) -> Array:
        """The frame of each item."""
        return np.arange(self.store.num_frames)

    def stream(self, **options: Any) -> "ShardStream[FrameBatch]":
        """Batches in an order that takes one shard after the other; `options` are those of `ShardStream`."""
        return ShardStream(self, **options)

    def loader(self, **options: Any) -> "DataLoader[FrameBatch]":
        """A DataLoader of `FrameBatch`; `options` are its arguments (`batch_size`, `shuffle`, `num_workers`, ...)."""
        return DataLoader(self, collate_fn=hand_over, **options)


class PairView(Dataset[PairBatch]):
    """Item i is pair i as a batch of one; a DataLoader reads a whole batch at once."""

    def __init__(self, store: "Store", pairs: PairIndex, columns: tuple[str, ...]) -> None:
        self.store, self.pairs, self.columns = store, pairs, columns

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> PairBatch:
        """The pairs as one batch; what a DataLoader calls."""
        chosen = np.asarray(indices)
        return PairBatch(
            first=self.store.batch(self.pairs.first[chosen], self.columns),
            second=self.store.batch(self.pairs.second[chosen], self.columns),
        )

    def frames(self) -> Array:
        """The first frame of each pair; the second is in the same clip."""
        return self.pairs.first

    def stream(self, **options: Any) -> "ShardStream[PairBatch]":
        """Batches in an order that takes one shard after the other; `options` are those of `ShardStream`."""
        return ShardStream(self, **options)

    def loader(self, **options: Any) -> "DataLoader[PairBatch]":
        """A DataLoader of `PairBatch`; `options` are its arguments (`batch_size`, `shuffle`, `num_workers`, ...)."""
        return DataLoader(self, collate_fn=hand_over, **options)
