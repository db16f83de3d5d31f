"""Samples of a store as batches: which ones, in which order, read by whom; pairs of frames among them.

The order is a function of seed and place, so that a run resumes in the middle of an epoch, and processes share the
stream without talking. The sampler decides everything; loader processes only read.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_specs.actions import ACTION_NAME
from data_specs.arrays import Array
from data_specs.batches import PairBatch
from pipeline.config import FailedError
from pipeline.store.handover import forget_ended, hand_over
from pipeline.store.loader import Store
from pipeline.store.pixels import pairs_with_pixels
from pipeline.store.shard_order import ShardOrder
from pipeline.train.signals import ignore_stop_signals
from pipeline.train.task import BatchPlan
from pipeline.train_config import PairsSection, TrainSection
from stages.draw import mix_seed

BatchT = TypeVar("BatchT")

LOADER_TIMEOUT = 600
"""Seconds without a batch after which loader processes are given up."""

_PATIENCE = 10.0
"""Seconds to wait for one that was killed."""


class ByShard(NamedTuple):
    """That samples are taken shard after shard: the shard i8 [n] of each, how many there are, samples of the buffer."""

    shard: Array
    shards: int
    buffer: int


class Stream:
    """Training samples, epoch after epoch, each epoch in an order of its own; place p is in epoch p // size.

    Args:
        items: [n, ...], a row a sample; an epoch takes each of them once.
        seed: another one, another order.
        chance: f8 [n], in proportion to which samples are drawn instead, with replacement, n an epoch.
        by: take them (or those drawn for the epoch) shard after shard; without it in any order.
    """

    def __init__(self, items: Array, seed: int, chance: Array | None = None, by: ByShard | None = None) -> None:
        self._items, self._seed, self._by = items, seed, by
        self._chance = None if chance is None else chance / chance.sum()
        self._epoch = -1
        self._shuffled = items[:0]

    def take(self, places: range) -> Array:
        """The samples at consecutive places."""
        where = np.arange(places.start, places.stop)
        epoch, place = np.divmod(where, len(self._items))
        return np.concatenate([self._of(int(number))[place[epoch == number]] for number in np.unique(epoch)])

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._items)

    def shards_of(self, epoch: int) -> Array:
        """The shard i8 [n] of each sample of an epoch, in its order; of a stream that is taken by shards."""
        assert self._by is not None
        return self._by.shard[self._order(epoch)]

    def _of(self, epoch: int) -> Array:
        """The samples of an epoch, shuffled; the last one asked for is kept."""
        if epoch != self._epoch:
            self._shuffled = self._items_of(epoch)[self._order(epoch)]
            self._epoch = epoch
        return self._shuffled

    def _order(self, epoch: int) -> Array:
        generator = np.random.default_rng(mix_seed(self._seed, epoch, 0))
        size, by = len(self._items), self._by
        if by is None:
            return generator.permutation(size) if self._chance is None else self._drawn(generator)
        drawn = np.arange(size) if self._chance is None else self._drawn(generator)
        order = ShardOrder(by.shard[drawn], by.shards, seed=self._seed, buffer=by.buffer)
        return np.asarray(drawn[order.of(epoch)])

    def _drawn(self, generator: np.random.Generator) -> Array:
        return generator.choice(len(self._items), len(self._items), p=self._chance)

    def _items_of(self, epoch: int) -> Array:
        """The samples of an epoch in their own order."""
        return self._items


class PairStream(Stream):
    """Training pairs: frames i8 [n,2] a pair.

    Args:
        store: where the frames are.
        pairs: i8 [n,2], first and second frames.
        section: `motion` above 0 draws with replacement, oftener where more moves; `jitter` above 0 pairs each first
            frame, anew every epoch, with one at an offset drawn from around the recipe's. Where the clip has none
            there (it ends before), the first frame keeps the partner it has in `pairs`.
        seed: another one, another order.
        weights: f8 [n], how much moves in each pair, with mean 1; needed where `section.motion` is above 0.
        by: take them shard after shard.
    """

    def __init__(
        self,
        store: Store,
        pairs: Array,
        section: PairsSection,
        seed: int,
        weights: Array | None = None,
        by: ByShard | None = None,
    ) -> None:
        chance = None
        if weights is not None:
            chance = (1 - section.motion) + section.motion * weights.astype(np.float64)
        super().__init__(pairs, seed, chance, by)
        self._store, self._section = store, section

    def _items_of(self, epoch: int) -> Array:
        section = self._section
        if not section.jitter:
            return self._items
        try:
            drawn = self._store.pairs(section.offset, jitter=section.jitter, seed=mix_seed(self._seed, epoch, 1))
        except ValueError:  # of a few short clips none may reach as far as was drawn for it
            return self._items
        first = self._items[:, 0]
        partner = np.full(self._store.num_frames, -1, dtype=np.int64)
        partner[first] = self._items[:, 1]
        partner[drawn.first] = drawn.second
        return np.stack([first, partner[first]], axis=1)


class PairReader(Dataset[PairBatch]):
    """Frame numbers i8 [n,2] of pairs → the pairs as one batch, images decoded.

    Actions are those of the clips `labelled` alone; NaN hides all others from whatever reads the batch.
    """

    def __init__(self, store: Store, columns: Sequence[str], labelled: Array | None = None) -> None:
        self._store, self._columns, self._labelled = store, tuple(columns), labelled

    def __getitem__(self, pairs: Array) -> PairBatch:
        read = [self._store.batch(np.ascontiguousarray(side), self._columns) for side in pairs.T]
        batch = PairBatch(first=read[0], second=read[1])
        if self._labelled is not None:
            clip, _ = self._store.clip_of(pairs[:, 0])
            hidden = torch.from_numpy(~np.isin(clip, self._labelled))
            for side in (batch.first, batch.second):
                side.extra[ACTION_NAME][hidden] = torch.nan
        return pairs_with_pixels(batch)


class StreamSampler(Sampler[Array]):
    """Samples at the places of a plan, without end; `ahead` is told each place before it is asked for."""

    def __init__(self, stream: Stream, plan: BatchPlan, ahead: Callable[[int], None] | None = None) -> None:
        self._stream, self._plan, self._ahead = stream, plan, ahead

    def __iter__(self) -> Iterator[Array]:
        for places in self._plan:
            if self._ahead is not None:
                self._ahead(places.start)
            yield self._stream.take(places)


def spread(items: Array, most: int) -> Array:
    """At most `most` of the rows, spread evenly."""
    if len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, most).round().astype(np.int64)] if most else items[:0]


def load_ahead(reader: Dataset[BatchT], items: Iterable[Any], section: TrainSection) -> Iterator[BatchT]:
    """The batches that `reader` makes of `items`, read ahead by `section.workers` processes, by this one if none.

    The processes end with the iterator: by themselves, or killed where they do not.

    Raises FailedError when a loader process dies, or none gives a batch for `LOADER_TIMEOUT` seconds; what `reader`
    raises of that kind (a damaged shard) arrives as it is.
    """
    workers = section.workers
    loader: DataLoader[BatchT | _Failure] = DataLoader(
        _Telling(reader) if workers else reader,
        batch_size=None,
        sampler=items,
        collate_fn=hand_over,
        num_workers=workers,
        prefetch_factor=section.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="spawn" if workers else None,  # a fork of torch's threads can wait for ever
        timeout=LOADER_TIMEOUT if workers else 0,
        generator=torch.Generator(),  # or the loader would take its seed from the generator that training uses
    )
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    ours = [child for child in multiprocessing.active_children() if child not in before]
    try:
        for batch in batches:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    except RuntimeError as error:
        if "DataLoader timed out" in str(error):
            raise FailedError(
                f"The loader processes gave no batch for {LOADER_TIMEOUT} s: is the store's disk or network gone? Go "
                "on with --resume; train.workers=0 reads in the training process."
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise FailedError(
            f"A loader process died ({str(error).splitlines()[0]}): out of memory? Lower train.workers or "
            "train.prefetch, and go on with --resume."
        ) from error
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()  # asks them to end, and stops raising an error for one that does
        for process in ours:
            if process.is_alive():  # it ignores SIGTERM, and Python would wait for it for ever at its own end
                process.kill()
            process.join(_PATIENCE)
        forget_ended()


@dataclass(frozen=True)
class _Failure:
    """In the place of a batch: torch would give an error of ours back as another one, with a traceback in its text."""

    error: FailedError


class _Telling(Dataset[Any]):
    """A reader in a loader process."""

    def __init__(self, reader: Dataset[Any]) -> None:
        self._reader = reader

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._reader[item]
        except FailedError as error:
            return _Failure(error)


def _start_worker(_number: int) -> None:
    ignore_stop_signals()
    torch.set_num_threads(1)
