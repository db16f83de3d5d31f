"""Pairs of a store as batches: which ones, in which order, read by whom.

The order is a function of seed and place, so that a run resumes in the middle of an epoch, and processes share the
stream without talking. The sampler decides everything; loader processes only read.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_specs.arrays import Array
from data_specs.batches import PairBatch
from pipeline.config import FailedError, TrainSection
from pipeline.store.loader import Store
from pipeline.store.pixels import pairs_with_pixels
from pipeline.store.views import as_is
from pipeline.train.signals import ignore_stop_signals
from pipeline.train.task import BatchPlan
from stages.draw import mix_seed


class ShuffledStream:
    """The numbers 0..size-1, epoch after epoch, each epoch in an order of its own; place p is in epoch p // size.

    With `weights` f8 [size] an epoch draws with replacement, in proportion to them.
    """

    def __init__(self, size: int, seed: int, weights: Array | None = None) -> None:
        self.size, self._seed = size, seed
        self._chance = None if weights is None else weights / weights.sum()
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def take(self, places: range) -> tuple[Array, Array]:
        """Epochs i8 [n] and numbers i8 [n] at consecutive places."""
        where = np.arange(places.start, places.stop)
        epoch = where // self.size
        parts = [self._of(int(e))[where[epoch == e] % self.size] for e in np.unique(epoch)]
        return epoch, np.concatenate(parts)

    def _of(self, epoch: int) -> Array:
        if epoch != self._epoch:
            generator = np.random.default_rng(mix_seed(self._seed, epoch))
            if self._chance is None:
                self._order = generator.permutation(self.size)
            else:
                self._order = generator.choice(self.size, self.size, p=self._chance)
            self._epoch = epoch
        return self._order


class PairReader(Dataset[PairBatch]):
    """Frame numbers i8 [n,2] of pairs → the pairs as one batch, images decoded."""

    def __init__(self, store: Store, columns: Sequence[str]) -> None:
        self._store, self._columns = store, tuple(columns)

    def __getitem__(self, pairs: Array) -> PairBatch:
        read = [self._store.batch(np.ascontiguousarray(side), self._columns) for side in pairs.T]
        return pairs_with_pixels(PairBatch(first=read[0], second=read[1]))


class PairSampler(Sampler[Array]):
    """Pairs i8 [n,2] at the places of a plan, without end."""

    def __init__(self, pairs: Array, stream: ShuffledStream, plan: BatchPlan) -> None:
        self._pairs, self._stream, self._plan = pairs, stream, plan

    def __iter__(self) -> Iterator[Array]:
        for places in self._plan:
            _, chosen = self._stream.take(places)
            yield self._pairs[chosen]


def load_ahead(reader: PairReader, pairs: Iterable[Array], section: TrainSection) -> Iterator[PairBatch]:
    """The batches of `pairs`, read ahead by `section.workers` processes; in this one when there are none.

    Raises FailedError when a loader process dies.
    """
    workers = section.workers
    loader: DataLoader[PairBatch] = DataLoader(
        reader,
        batch_size=None,
        sampler=pairs,  # type: ignore[arg-type]  # an iterable is all that is needed
        collate_fn=as_is,
        num_workers=workers,
        prefetch_factor=section.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if workers else None,
        generator=torch.Generator(),  # or the loader would take its seed from the generator that training uses
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FailedError(
            f"A loader process died ({str(error).splitlines()[0]}): out of memory? Lower train.workers or "
            "train.prefetch, and go on with --resume."
        ) from error


def _start_worker(_number: int) -> None:
    ignore_stop_signals()
    torch.set_num_threads(1)
