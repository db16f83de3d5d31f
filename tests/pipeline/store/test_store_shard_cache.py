"""Whole shards in a local folder of bounded size: fetched once, checked, and gone when there is no room."""

import fcntl
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from store_factory import FORMATS, small_record, small_records, small_store

from pipeline.store import ShardError, StoreError, StoreRequestError, open_store
from pipeline.store import shard_cache as module
from pipeline.store.shard_cache import ShardCache

ALL = ("tokens", "cells", "points", "camera", "rgb")


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that were fetched whole; a memory of its own."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(module, "_PAUSE_S", 0.001)
    names = []
    real = MemoryFileSystem.get_file

    def get_file(self, remote, local, **options):
        names.append(remote.rsplit("/", 1)[-1])
        return real(self, remote, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return names


def sizes(layout):
    return [sidecar.file.bytes for sidecar in layout.sidecars()]


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_store_far_away_gives_the_same_batches(tmp_path, fetched, store_format):
    small_store("memory://far/s", store_format, small_records(8))
    store = open_store("memory://far/s", cache=ShardCache(tmp_path / "c", 1 << 30))
    far = open_store("memory://far/s")
    wanted = [7, 0, 3, 3, store.num_frames - 1]
    seen, others = [], []
    store.batch(wanted, ALL).map(lambda t: seen.append(t) or t)
    far.batch(wanted, ALL).map(lambda t: others.append(t) or t)
    assert len(seen) > 15 and all(map(torch.equal, seen, others))
    store.batch(range(store.num_frames), ALL)
    store.batch(range(store.num_frames), ALL)
    assert sorted(fetched) == sorted({store.layout.data_name(s).rpartition("/")[2] for s in store.shards})
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.batch(wanted).tokens.feat, far.batch(wanted).tokens.feat)
    assert len(fetched) == len(store.shards)  # another process finds them there


def test_what_was_used_least_recently_makes_room(tmp_path, fetched):
    layout = small_store("memory://far/s", records=[small_record(f"{i}", seed=i) for i in range(4)], per_shard=1)
    names, each = layout.committed(), sizes(layout)
    cache = ShardCache(tmp_path, 3 * max(each))
    for name in names[:3]:
        cache.open(layout, name)
    cache.open(layout, names[0])
    assert len(fetched) == 3 and cache.used() <= cache.size
    file = cache.open(layout, names[3])
    assert cache.used() <= cache.size and not file.gone
    cache.open(layout, names[0])
    assert len(fetched) == 4, "the first was used after the second"
    cache.open(layout, names[1])
    assert len(fetched) == 5


def test_files_that_made_room_are_unmapped(tmp_path, fetched):
    layout = small_store("memory://far/s", records=small_records(8), per_shard=2)
    store = open_store("memory://far/s", cache=ShardCache(tmp_path, 2 * max(sizes(layout))))
    expected = [open_store("memory://far/s").batch([frame]) for frame in range(store.num_frames)]
    for _ in range(2):
        for frame in range(store.num_frames):
            assert torch.equal(store.batch([frame]).tokens.feat, expected[frame].tokens.feat)
            mapped = [source for source in store._table.shards._sources.values() if not source.gone]
            assert len(mapped) == len(store._table.shards._sources) <= 3
            assert store.cache.used() <= store.cache.size


def test_shards_come_ahead_and_once(tmp_path, fetched):
    layout = small_store("memory://far/s", records=small_records(8), per_shard=2)
    cache = ShardCache(tmp_path, 1 << 30)
    cache.ahead(layout, layout.committed())
    cache.ahead(layout, layout.committed())
    threads = [threading.Thread(target=cache.open, args=(layout, name)) for name in layout.committed() * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    cache.close()
    assert sorted(fetched) == [f"{name}.zarr.zip" for name in layout.committed()] or len(fetched) == 4
    assert not list(tmp_path.glob("*.part"))


def test_what_arrives_damaged_is_fetched_again_and_then_refused(tmp_path, fetched, monkeypatch):
    layout = small_store("memory://far/s")
    name = layout.committed()[0]
    real, broken = MemoryFileSystem.get_file, []

    def cut(self, remote, local, **options):
        real(self, remote, local, **options)
        if len(broken) < 2:
            broken.append(remote)
            os.truncate(local, 1000)
        elif len(broken) < 3:
            broken.append(remote)
            raise ConnectionResetError("the line was cut")

    monkeypatch.setattr(module, "_TRIES", 4)
    monkeypatch.setattr(MemoryFileSystem, "get_file", cut)
    cache = ShardCache(tmp_path, 1 << 30)
    assert cache.open(layout, name).size == layout.sidecar(name).file.bytes and len(broken) == 3
    data = layout.files.path(layout.data_name(layout.committed()[1]))
    MemoryFileSystem().pipe_file(data, b"x" * 500)
    with pytest.raises(ShardError, match=r"arrives otherwise than it was committed \(500 of .*, 4 times"):
        cache.open(layout, layout.committed()[1])
    assert not list(tmp_path.glob("*.part"))
    MemoryFileSystem().rm(data)
    cache.ahead(layout, [layout.committed()[1]])
    with pytest.raises(ShardError, match="is missing"):
        cache.open(layout, layout.committed()[1])


def test_requests_that_make_no_sense_get_sentences(tmp_path, fetched, monkeypatch):
    layout = small_store("memory://far/s")
    with pytest.raises(StoreRequestError, match=r"the cache in .* holds 1,000: give it more room"):
        ShardCache(tmp_path, 1000).open(layout, layout.committed()[0])
    with pytest.raises(StoreRequestError, match="0 bytes makes no sense"):
        ShardCache(tmp_path, 0)
    with pytest.raises(ShardError, match="no sidecar"):
        ShardCache(tmp_path, 1000).open(layout, "other")
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    cache = ShardCache(tmp_path, max(sizes(layout)))
    other = tmp_path / f"{'0' * 40}-500.zip.part"  # somebody downloads it
    with other.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="has had no room"):
            cache.open(layout, layout.committed()[sizes(layout).index(max(sizes(layout)))])
    # nobody downloads it any more
    cache.open(layout, layout.committed()[0])
    assert not other.exists()


def test_a_copy_that_was_cut_off_is_fetched_anew(tmp_path, fetched):
    layout = small_store("memory://far/s")
    path = ShardCache(tmp_path, 1 << 30).open(layout, layout.committed()[0]).path
    with path.open("r+b") as file:
        file.truncate(100)
    assert ShardCache(tmp_path, 1 << 30).open(layout, layout.committed()[0]).size > 100
    assert len(fetched) == 2


def _read(folder: Path, cache: Path, size: int, seed: int) -> None:
    store = open_store(str(folder), cache=ShardCache(cache, size))
    generator = torch.Generator().manual_seed(seed)
    plain = open_store(str(folder))
    for _ in range(40):
        frames = torch.randint(store.num_frames, (3,), generator=generator)
        assert torch.equal(store.batch(frames).tokens.feat, plain.batch(frames).tokens.feat)


def test_processes_share_a_folder(tmp_path):
    """Two of them, in a cache that has room for half of the shards: it is evicted under their hands."""
    layout = small_store(tmp_path / "s", records=small_records(8), per_shard=1)
    room = 4 * max(sizes(layout))
    fork = multiprocessing.get_context("fork")
    readers = [fork.Process(target=_read, args=(tmp_path / "s", tmp_path / "c", room, seed)) for seed in range(2)]
    for reader in readers:
        reader.start()
    try:
        for reader in readers:
            reader.join(60)
        assert [reader.exitcode for reader in readers] == [0, 0]
    finally:
        for reader in readers:
            reader.kill()
    assert ShardCache(tmp_path / "c", room).used() <= room
