"""The order in which a store far away is read: every sample once, shard after shard, from anywhere on."""

import itertools

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from store_factory import small_records, small_store

from pipeline.store import StoreRequestError, open_store
from pipeline.store.shard_cache import ShardCache
from pipeline.store.stream import ShardStream


class MadeUp:
    """A view of made-up samples: `shards[i]` samples in shard i, shuffled; a batch is their numbers."""

    def __init__(self, shards, seed=0):
        self.shard = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(shards)), shards))
        self.store = self
        self.shards = [str(i) for i in range(len(shards))]
        self.cache, self.digest = None, "d"

    def __len__(self):
        return len(self.shard)

    def __getitems__(self, indices):
        return list(indices)

    def frames(self):
        return np.arange(len(self.shard))

    def shard_of(self, frames):
        return self.shard[frames]


SETTINGS = {
    "shards": st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda s: sum(s) > 0),
    "batch": st.integers(1, 17),
    "buffer": st.integers(1, 60),
    "world": st.integers(1, 5),
    "seed": st.integers(0, 3),
}


@settings(max_examples=150, deadline=None)
@given(**SETTINGS)
def test_every_sample_comes_exactly_once_an_epoch_over_all_ranks(shards, batch, buffer, world, seed):
    view = MadeUp(shards)
    streams = [
        ShardStream(view, batch_size=batch, buffer=buffer, seed=seed, rank=rank, world=world) for rank in range(world)
    ]
    orders = []
    for epoch in range(2):
        taken = [[sample for given in stream for sample in given] for stream in streams]
        assert sorted(itertools.chain(*taken)) == list(range(len(view)))
        assert max(map(len, taken)) - min(map(len, taken)) <= 1
        assert all(stream.epoch == epoch + 1 for stream in streams)
        orders.append(taken)
    even = [
        ShardStream(view, batch_size=batch, seed=seed, rank=rank, world=world, drop_last=True) for rank in range(world)
    ]
    lengths = [[len(given) for given in stream] for stream in even]
    assert lengths == [[batch] * (len(view) // world // batch)] * world == [[batch] * len(even[0])] * world


@settings(max_examples=150, deadline=None)
@given(**SETTINGS, at=st.integers(0, 40))
def test_a_stream_goes_on_where_another_one_was(shards, batch, buffer, world, seed, at):
    view = MadeUp(shards)
    options = {"batch_size": batch, "buffer": buffer, "seed": seed, "rank": world - 1, "world": world}
    whole = ShardStream(view, **options)
    expected = [batch for _ in range(3) for batch in whole]
    stream = ShardStream(view, **options)
    got = []

    def some(stream, count):
        while count > 0 and stream.epoch < 3:
            for batch in stream:
                got.append(batch)
                count -= 1
                if count == 0:
                    break

    some(stream, at)
    again = ShardStream(view, **options)
    again.load_state_dict(stream.state_dict())
    some(again, len(expected) - len(got))
    assert got == expected


@settings(max_examples=50, deadline=None)
@given(buffer=st.integers(1, 100), seed=st.integers(0, 5))
def test_the_buffer_bounds_how_many_shards_are_open_at_a_time(buffer, seed):
    view = MadeUp([20] * 15)
    order = ShardStream(view, batch_size=1, buffer=buffer, seed=seed).order(0)
    shard = view.shard[order]
    spans = [np.flatnonzero(shard == number)[[0, -1]] for number in range(15)]
    open_at = [sum(low <= at <= high for low, high in spans) for at in range(len(order))]
    assert max(open_at) <= buffer // 20 + 2


def test_the_order_is_shuffled_and_another_one_each_epoch():
    view = MadeUp([50] * 4)
    stream = ShardStream(view, batch_size=10, buffer=100)
    first, second = stream.order(0), stream.order(1)
    assert (first == stream.order(0)).all() and not (first == second).all()
    assert not (np.diff(first) == 1).sum() > 20
    assert len(set(view.shard[first[:60]])) > 1, "samples of several shards are mixed"
    assert not (ShardStream(view, batch_size=10, seed=1).order(0) == first).all()


def test_other_settings_are_refused():
    view = MadeUp([5, 5])
    state = ShardStream(view, batch_size=2).state_dict()
    with pytest.raises(StoreRequestError, match=r"batch_size 2 \(now 3\), world 1 \(now 2\)"):
        ShardStream(view, batch_size=3, world=2).load_state_dict(state)
    with pytest.raises(ValueError, match="rank 2 is none of 2"):
        ShardStream(view, batch_size=2, rank=2, world=2)
    with pytest.raises(ValueError, match="1 or more"):
        ShardStream(view, batch_size=0)


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A store in memory, with the names of the files that were fetched whole."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    names = []
    real = MemoryFileSystem.get_file

    def get_file(self, remote, local, **options):
        names.append(remote.rsplit("/", 1)[-1])
        return real(self, remote, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    layout = small_store("memory://far/s", records=small_records(24), per_shard=2)
    return layout, names


def test_each_shard_is_fetched_once_an_epoch_and_the_cache_keeps_its_bound(far, tmp_path):
    layout, names = far
    largest = max(sidecar.file.bytes for sidecar in layout.sidecars())
    cache = ShardCache(tmp_path, 4 * largest)
    store = open_store("memory://far/s", cache=cache)
    plain = open_store("memory://far/s")
    stream = store.view().stream(batch_size=3, buffer=4)
    for epoch in range(2):
        seen = []
        for batch in stream:
            assert torch.equal(batch.tokens.feat, plain.batch(batch.index).tokens.feat)
            assert cache.used() <= cache.size
            seen += batch.index.tolist()
        assert sorted(seen) == list(range(store.num_frames))
        assert len(names) <= (epoch + 1) * len(store.shards), "what is still there need not come again"
        assert set(names) == {layout.data_name(shard).rpartition("/")[2] for shard in store.shards}


def test_pairs_stream_by_rank_and_ranks_fetch_their_own_shards(far, tmp_path):
    _, names = far
    fetched, seen = [], []
    for rank in range(3):
        store = open_store("memory://far/s", cache=ShardCache(tmp_path / f"{rank}", 1 << 30))
        view = store.pair_view(store.pairs(0.25))
        stream = view.stream(batch_size=2, buffer=4, rank=rank, world=3)
        seen += [tuple(p) for b in stream for p in zip(b.first.index.tolist(), b.second.index.tolist(), strict=True)]
        store.cache.close()
        fetched.append(len(names))
        names.clear()
    pairs = store.pairs(0.25)
    assert sorted(seen) == sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert max(fetched) < len(store.shards) and sum(fetched) <= len(store.shards) + 2


def test_a_buffer_that_does_not_fit_is_refused(far, tmp_path):
    layout, _ = far
    largest = max(sidecar.file.bytes for sidecar in layout.sidecars())
    store = open_store("memory://far/s", cache=ShardCache(tmp_path, largest + 10))
    with pytest.raises(StoreRequestError, match="take a smaller buffer"):
        list(store.view().stream(batch_size=2, buffer=1000))


def test_workers_read_the_same_stream(tmp_path):
    small_store(tmp_path / "s", records=small_records(6))
    store = open_store(str(tmp_path / "s"), cache=ShardCache(tmp_path / "c", 1 << 30))
    expected = [batch.index.tolist() for batch in store.view().stream(batch_size=3)]
    stream = store.view().stream(batch_size=3, workers=1)
    assert [batch.index.tolist() for batch in stream] == expected and stream.epoch == 1
