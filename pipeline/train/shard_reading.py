"""Stores that are far away, as training reads them: shard after shard, fetched ahead into a local folder.

`data.order=shards` takes the shards of an epoch one after the other, in an order drawn anew for each, and mixes samples
within a buffer. The order is a function of seed, epoch and buffer alone: it is the same for a store and its copy
elsewhere, for any cache and any number of processes. These share the samples of every step, so that those of a machine
read the same shards at the same time, and share their copies; every machine fetches every shard once an epoch.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from data_specs.arrays import Array
from pipeline.config import RequestError
from pipeline.store.errors import StoreRequestError
from pipeline.store.files import StoreFiles
from pipeline.store.loader import Store
from pipeline.store.shard_cache import ShardCache
from pipeline.train.data import ByShard, Stream, StreamSampler
from pipeline.train.task import BatchPlan
from pipeline.train_config import DataSection, TrainSection

BUFFER = 8192
"""Samples from among which each is drawn, where the recipe does not say it."""

CACHE_GB = 20.0
"""Room of the local folder, where the recipe does not say it."""

_DOWNLOADS = 4
"""Shards of one process that are on their way at a time."""

_REQUESTS = 8
"""Batches that are read at a time by requests of their own, without the cache."""

SectionT = TypeVar("SectionT", bound=DataSection)
BatchT = TypeVar("BatchT")


def with_order(section: SectionT, urls: Iterable[str]) -> SectionT:
    """The section with the order that a run on these stores has, as its record shall name it.

    `shards` with its buffer, where that is asked for or one of the stores is behind a URL; else neither. RequestError
    for a buffer without the order that has one.
    """
    order = section.order
    if order is None and any(not StoreFiles(str(url)).is_local for url in urls):
        order = "shards"
    if order == "shards":
        return section.model_copy(update={"order": order, "buffer": section.buffer or BUFFER})
    if section.buffer is not None:
        raise RequestError("data.buffer is for data.order=shards, which this run does not have: leave it out.")
    return section.model_copy(update={"order": None})


class ShardReading:
    """The stores of a run that has `data.order=shards`: those behind a URL through the cache, the others as they are.

    Raises RequestError for a cache folder that cannot be made.
    """

    def __init__(self, stores: Sequence[Store], section: DataSection) -> None:
        far = [not store.layout.files.is_local for store in stores]
        self._cache = _cache(section) if any(far) else None
        self.stores = tuple(
            store.through(self._cache) if away and self._cache else store
            for store, away in zip(stores, far, strict=True)
        )
        self._first = np.cumsum([0, *(len(store.shards) for store in stores)])
        self._buffer = section.buffer or BUFFER
        self._kept: list[Any] | None = None

    def by(self, store: Array, frames: Array) -> ByShard:
        """The shard of each sample, counted through the stores.

        Args:
            store: the number of its store i8 [n].
            frames: a frame of it i8 [n], as its store counts them.
        """
        shard = np.empty(len(frames), dtype=np.int64)
        for number in np.unique(store).tolist():
            mine = store == number
            shard[mine] = self._first[number] + self.stores[number].shard_of(frames[mine])
        return ByShard(shard, int(self._first[-1]), self._buffer)

    def sampler(self, stream: Stream, plan: BatchPlan, section: TrainSection) -> StreamSampler:
        """The samples at a plan's places, whose shards are fetched before them, by how far batches are read ahead.

        Raises RequestError, when it is begun, where the shards of the buffer's samples have no room together.
        """
        if self._cache is None:
            return StreamSampler(stream, plan)
        behind = plan.batch * plan.world * (1 + section.workers * section.prefetch)
        return StreamSampler(stream, plan, _Ahead(self._cache, self._named, stream, behind))

    def held_out(self, reader: Dataset[BatchT], items: Sequence[Any]) -> Iterable[BatchT]:
        """The batches that `reader`, of the stores without the cache, makes of the held-out samples `items`.

        They are all over the shards, which would have to be fetched for them again and again: their own bytes alone are
        asked for, once, and kept in memory.
        """
        if self._cache is None:
            return (reader[item] for item in items)
        if self._kept is None:
            # a copy forgets with its end the shards that it has opened
            own: Dataset[BatchT] = pickle.loads(pickle.dumps(reader))
            with ThreadPoolExecutor(_REQUESTS) as pool:
                self._kept = list(pool.map(own.__getitem__, items))
        return self._kept

    def close(self) -> None:
        """Fetch nothing more."""
        if self._cache is not None:
            self._cache.close()

    def _named(self, shard: int) -> tuple[Store, str] | None:
        """A shard by its number; None for one that is at hand."""
        number = int(np.searchsorted(self._first, shard, side="right") - 1)
        store = self.stores[number]
        return None if store.cache is None else (store, store.shards[shard - int(self._first[number])])


class _Ahead:
    """Fetches shards before they are needed, as far as the cache has room, the next epoch's among them."""

    def __init__(
        self,
        cache: ShardCache,
        named: Callable[[int], tuple[Store, str] | None],
        stream: Stream,
        behind: int,
    ) -> None:
        self._cache, self._named, self._stream, self._behind = cache, named, stream, behind
        self._visits: list[_Visit] = []
        self._epoch: int | None = None
        self._wanted: list[tuple[Store, str]] = []

    def __call__(self, place: int) -> None:
        """The batch at `place` comes next; those before it may not have been read yet."""
        epoch = place // len(self._stream)
        if self._epoch is None:
            self._add(epoch)
            self._refuse_small()
        elif epoch > self._epoch:
            self._add(epoch)
        self._visits = [visit for visit in self._visits if visit.last >= place - self._behind]
        wanted, room = self._that_fit()
        if room >= 0 and self._epoch == epoch:
            self._add(epoch + 1)
            wanted, _ = self._that_fit()
        if wanted != self._wanted:
            self._wanted = wanted
            for store, shard in wanted:
                self._cache.ahead(store.layout, [shard])

    def _that_fit(self) -> tuple[list[tuple[Store, str]], int]:
        """The shards that come next, as many as there is room for; and the room that is left, under 0 for none."""
        wanted: dict[tuple[str, str], tuple[Store, str]] = {}
        room = self._cache.size
        for visit in self._visits:
            store, shard = visit.shard
            key = store.layout.url, shard
            if key in wanted:
                continue
            room -= self._cache.bytes_of(store.layout, shard)
            if room < 0:
                break
            wanted[key] = visit.shard
        return list(wanted.values()), room

    def _add(self, epoch: int) -> None:
        """The visits of one more epoch."""
        self._epoch = epoch
        shard, begin = self._stream.shards_of(epoch), epoch * len(self._stream)
        numbers, first = np.unique(shard, return_index=True)
        last = len(shard) - 1 - np.unique(shard[::-1], return_index=True)[1]
        for at in np.argsort(first).tolist():
            named = self._named(int(numbers[at]))
            if named is not None:
                self._visits.append(_Visit(begin + int(first[at]), begin + int(last[at]), named))

    def _refuse_small(self) -> None:
        """RequestError unless the cache holds all shards that are read in turns, when they are most."""
        first = np.array([visit.first for visit in self._visits])  # increasing
        last = np.sort([visit.last for visit in self._visits])
        open_at = np.arange(1, len(first) + 1) - np.searchsorted(last, first)
        at = int(first[np.argmax(open_at)]) if len(first) else 0
        together = [visit.shard for visit in self._visits if visit.first <= at <= visit.last]
        needed = sum(self._cache.bytes_of(store.layout, shard) for store, shard in together)
        if needed > self._cache.size:
            raise StoreRequestError(
                f"The {len(together)} shards that the buffer's samples are in have {needed / 1e9:.3g} GB, the cache in "
                f"{self._cache.folder} holds {self._cache.size / 1e9:.3g} GB: give it more room (data.cache_gb), or "
                "take a smaller buffer (data.buffer)."
            )


class _Visit(NamedTuple):
    """The first and last place of an epoch that need a shard."""

    first: int
    last: int
    shard: tuple[Store, str]


def _cache(section: DataSection) -> ShardCache:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(section.cache or f"{base}/cla/shards").expanduser()
    size = int((section.cache_gb or CACHE_GB) * 1e9)
    try:
        return ShardCache(folder, size, threads=_DOWNLOADS)
    except OSError as error:
        raise RequestError(
            f"The cache folder {folder} cannot be made ({error.strerror}): name another one by data.cache."
        ) from None
