"""Batches of a store in an order that takes its shards one after the other, for a store that is far away.

Shards come in an order drawn anew for every epoch; their samples go through a buffer, from which they are drawn at
random. A rank takes a stretch of that order, so that it fetches its own shards and hardly any of the others'.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from data_specs.arrays import Array
from pipeline.store.errors import StoreRequestError
from pipeline.store.handover import forget_ended, hand_over
from pipeline.store.shard_order import ShardOrder, stretch

if TYPE_CHECKING:
    from pipeline.store.loader import Store

BatchT = TypeVar("BatchT", covariant=True)

WORKER_TIMEOUT_S = 600
"""Seconds without a batch after which worker processes are given up."""


class View(Protocol[BatchT]):
    """What is streamed: frames or pairs of a store, as batches by their numbers."""

    store: "Store"

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> BatchT: ...

    def frames(self) -> Array:
        """A frame i8 [n] of each sample: it says in which shard the sample is."""
        ...


class ShardStream(Generic[BatchT]):
    """A pass over it is what is left of the epoch: every sample of the rank exactly once.

    All ranks together take every sample exactly once an epoch; none has more than one sample more than another. With
    a cache (`open_store(..., cache=...)`) the shards that come next are fetched while batches are read, as far as the
    cache has room.

    Args:
        view: `store.view(...)` or `store.pair_view(...)`.
        batch_size: samples of a batch; the last one of an epoch may have fewer.
        buffer: samples from among which each is drawn. The shards that they are in must fit in the cache together.
        seed: another one, another order.
        rank, world: this process, and how many share the samples.
        drop_last: leave out what does not fill a batch on every rank, so that all have as many batches.
        workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self,
        view: View[BatchT],
        *,
        batch_size: int,
        buffer: int = 8192,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        if batch_size < 1 or buffer < 1:
            raise ValueError(
                f"a batch of {batch_size} or a buffer of {buffer} samples makes no sense: expected 1 or more"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is none of {world} ranks: expected 0 to {world - 1}")
        self._view, self._batch, self._buffer, self._seed = view, batch_size, buffer, seed
        self._rank, self._world, self._drop_last, self._workers = rank, world, drop_last, workers
        shard = view.store.shard_of(view.frames())
        self._order = ShardOrder(shard, len(view.store.shards), seed=seed, buffer=buffer)
        self._epoch, self._done = 0, 0

    def __len__(self) -> int:
        """Batches of an epoch of this rank."""
        total = len(self._order)
        if self._drop_last:
            return total // self._world // self._batch
        first, last = stretch(total, self._rank, self._world)
        return -(-(last - first) // self._batch)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: behind the batch that was given last."""
        return {"epoch": self._epoch, "batch": self._done, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream was. StoreRequestError when it had other settings or another store."""
        mine = self._identity()
        other = [name for name, value in mine.items() if state.get(name) != value]
        if other:
            was = ", ".join(f"{name} {state.get(name)!r} (now {mine[name]!r})" for name in other)
            raise StoreRequestError(f"The stream cannot go on from there, it was made with other settings: {was}.")
        self._epoch, self._done = int(state["epoch"]), int(state["batch"])

    def order(self, epoch: int) -> Array:
        """The samples i8 of this rank in an epoch, in order."""
        return self._order.of(epoch, rank=self._rank, world=self._world)

    def __iter__(self) -> Iterator[BatchT]:
        batches = self._batches()
        fetched = self._fetching(batches)
        try:
            for number, batch in enumerate(self._read(batches[self._done :]), self._done):
                fetched(number + 1)
                self._done = number + 1
                yield batch
        finally:
            if self._workers:
                forget_ended()
        self._epoch, self._done = self._epoch + 1, 0

    def _read(self, batches: list[list[int]]) -> Iterator[BatchT]:
        if not self._workers:
            for indices in batches:
                yield self._view.__getitems__(indices)
            return
        view: Any = self._view
        dataset: Dataset[BatchT] = view
        yield from DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=hand_over,
            num_workers=self._workers,
            multiprocessing_context="spawn",  # a fork of torch's threads can wait for ever
            timeout=WORKER_TIMEOUT_S,
        )

    def _batches(self) -> list[list[int]]:
        order = self.order(self._epoch)
        return [order[i * self._batch : (i + 1) * self._batch].tolist() for i in range(len(self))]

    def _fetching(self, batches: list[list[int]]) -> Any:
        """What fetches the shards that the batches from a number on need, as far as the cache has room."""
        store = self._view.store
        if store.cache is None or not batches:
            return lambda number: None
        shard = store.shard_of(self._view.frames()[np.concatenate(batches)])
        number = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        used, first = np.unique(shard, return_index=True)
        last = len(shard) - 1 - np.unique(shard[::-1], return_index=True)[1]
        plan = sorted(
            (int(number[begin]), int(number[end]), store.shards[s])
            for s, begin, end in zip(used.tolist(), first.tolist(), last.tolist(), strict=True)
        )
        ahead = _Ahead(store, plan)
        ahead(self._done)
        return ahead

    def _identity(self) -> dict[str, Any]:
        return {
            "store": self._view.store.digest,
            "samples": len(self._order),
            "batch_size": self._batch,
            "buffer": self._buffer,
            "seed": self._seed,
            "rank": self._rank,
            "world": self._world,
            "drop_last": self._drop_last,
        }


class _Ahead:
    """Fetches shards before they are needed. `plan`: the first and last batch that need each shard, by the first."""

    def __init__(self, store: "Store", plan: list[tuple[int, int, str]]) -> None:
        self._store, self._plan = store, plan
        self._wanted: list[str] = []

    def __call__(self, number: int) -> None:
        """Batch `number` comes next."""
        store, cache = self._store, self._store.cache
        assert cache is not None
        self._plan = [entry for entry in self._plan if entry[1] >= number]
        wanted, room = [], cache.size
        for first, _, shard in self._plan:
            room -= cache.bytes_of(store.layout, shard)
            if room < 0:
                if first <= number:
                    raise StoreRequestError(
                        f"The shards that the buffer's samples are in do not fit in the cache of {cache.size:,} bytes: "
                        "give it more room, or take a smaller buffer."
                    )
                break
            wanted.append(shard)
        if wanted != self._wanted:
            self._wanted = wanted
            cache.ahead(store.layout, wanted)
