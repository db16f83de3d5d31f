"""Batches are what the clips hold, however packed: by table or by clip, in threads, into memory used again."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_equality import assert_equal
from store_factory import FORMATS, small_record, small_records, small_store

from data_specs.batches import FrameBatch
from pipeline.store import ShardError, copying, memory, open_shards, open_store
from pipeline.store.assemble import assemble
from pipeline.store.loader import Store
from pipeline.store.places import ClipPlaces, HeldFrames, JoinedPlaces, hold

COLUMNS = ("tokens", "cells", "points", "camera", "rgb", "state", "action", "is_pad", "extra/step")
LARGE = ("tokens", "rgb")


def records(count: int, **more: object) -> list:
    made = small_records(count, state=3, action=2, **more)
    for record in made:
        record.extra["step"] = np.arange(len(record), dtype="<i4")
    return made


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    small_store(tmp_path / "s", request.param, records(11), per_shard=3)
    return open_store(str(tmp_path / "s"))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def by_clip(store: Store, frames: list[int], columns: tuple[str, ...] = COLUMNS) -> FrameBatch:
    """The batch by the rows that the shards give of each frame: what was done before places were kept in tables."""
    clips, at = store.clip_of(frames)
    places = ClipPlaces([(*store.locate(int(clip)), int(frame)) for clip, frame in zip(clips, at, strict=True)])
    return assemble(places, columns, index=np.array(frames), time=store.time[frames])


def test_a_batch_is_what_the_rows_of_each_frame_are(store: Store) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 2, 40, 7):
        frames = generator.integers(0, store.num_frames, size).tolist()
        assert_equal(store.batch(frames, COLUMNS), by_clip(store, frames))
        for column in COLUMNS:
            assert_equal(store.batch(frames, (column,)), by_clip(store, frames, (column,)))
    assert_equal(store.batch(range(store.num_frames), COLUMNS), by_clip(store, list(range(store.num_frames))))


@pytest.mark.usefixtures("threads")
def test_threads_copy_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_clip(store, [5, 0, 9, 9, 20])
    monkeypatch.setattr(copying, "SHARED", 1)
    assert_equal(store.batch([5, 0, 9, 9, 20], COLUMNS), expected)
    assert any(thread.name.startswith("cla-batch") for thread in threading.enumerate())


@pytest.mark.usefixtures("threads")
def test_batches_can_be_asked_for_from_many_threads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "SHARED", 1)
    monkeypatch.setattr(memory, "SMALL", 0)
    generator = np.random.default_rng(1)
    asked = [generator.integers(0, store.num_frames, 6).tolist() for _ in range(24)]
    expected = [by_clip(store, frames) for frames in asked]
    fresh = open_store(store.layout.url)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda frames: fresh.batch(frames, COLUMNS), asked, timeout=60))
    for mine, theirs in zip(found, expected, strict=True):
        assert_equal(mine, theirs)


def test_closed_shards_are_opened_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shards, "MAPPED", 2)
    monkeypatch.setattr(open_shards, "OPEN", 1)
    generator = np.random.default_rng(2)
    fresh = open_store(store.layout.url)
    for _ in range(6):
        frames = generator.integers(0, store.num_frames, 8).tolist()
        assert_equal(fresh.batch(frames, COLUMNS), by_clip(store, frames))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
def test_shards_keep_no_file_open_and_are_unmapped_in_the_end(store: Store) -> None:
    def mapped() -> int:
        return sum(f"{store.layout.url}/shards" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = len(list(Path("/proc/self/fd").iterdir()))
    store.batch(range(store.num_frames), ("tokens",))
    kept = store[0].tokens.feat
    assert mapped() == 4 and len(list(Path("/proc/self/fd").iterdir())) == before
    url = store.layout.url
    store._table.shards._reset()
    gc.collect()
    assert mapped() == 1
    np.testing.assert_array_equal(kept, open_store(url)[0].tokens.feat)


def test_memory_is_used_again_but_never_by_two(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(copying, "SHORT", 0)
    frames = list(range(store.num_frames))
    first = store.batch(frames, LARGE)
    assert first.tokens is not None and first.rgb is not None
    copy = first.map(torch.Tensor.clone)
    others = [store.batch(frames[::-1], LARGE) for _ in range(3)]
    assert_equal(first, copy)
    assert all(part.tokens.feat.data_ptr() % 64 == 0 for part in [first, *others])
    places = {part.tokens.feat.data_ptr() for part in [first, *others]}
    assert len(places) == 4
    part = first.tokens.feat[3:5].numpy()  # whatever is left of a batch keeps what it refers to
    expected = part.copy()
    del first, others
    again = [store.batch(frames[::-1], LARGE) for _ in range(4)]
    assert len({batch.tokens.feat.data_ptr() for batch in again} & places) == 3
    np.testing.assert_array_equal(part, expected)


def test_idle_memory_is_let_go() -> None:
    blocks = memory.Blocks()
    held = [blocks.take(100_000) for _ in range(20)]
    assert len({block.ctypes.data for block in held}) == 20
    del held
    for _ in range(2 * memory.SWEEP):
        blocks.take(100_000)
    assert len(blocks._blocks) == 1
    for _ in range(2 * memory.SWEEP):
        blocks.take(200_000)
    assert [len(block) for block, _ in blocks._blocks] == [212_992]


def test_ragged_batches_get_the_memory_of_the_last_one() -> None:
    blocks = memory.Blocks()
    generator = np.random.default_rng(0)
    places = {blocks.take(20_000_000).ctypes.data}
    for size in generator.integers(19_000_000, 20_500_000, 50).tolist():
        block = blocks.take(size)
        assert len(block) >= size
        places.add(block.ctypes.data)
        del block
    assert len(places) == 1


def test_frames_in_memory_are_collated_as_the_store_packs_them(store: Store) -> None:
    held = []
    for clip in range(len(store)):
        reader, row = store.locate(clip)
        for frame in range(store.info(clip).frames):
            arrays = {name: np.array(reader.frame(name, row, frame)) for name in reader.arrays}
            held.append(hold(arrays))
    wanted = [7, 0, 3, 3, store.num_frames - 1]
    flat = np.array(wanted)
    places = HeldFrames([held[frame] for frame in wanted])
    assert_equal(assemble(places, COLUMNS, index=flat, time=store.time[flat]), store.batch(wanted, COLUMNS))


def test_short_pieces_are_joined_and_long_ones_copied(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [5, 0, 5, 2]
    expected = store.batch(frames, COLUMNS)
    for short in (0, 1 << 40):
        monkeypatch.setattr(copying, "SHORT", short)
        batch = store.batch(frames, COLUMNS)
        assert_equal(batch, expected)
        batch.tokens.count[0] = 9  # a batch may be written to
    assert_equal(store.batch(frames, COLUMNS), expected)


def test_stores_are_joined_in_the_order_asked_for(tmp_path: Path) -> None:
    stores = []
    for number, store_format in enumerate(FORMATS):
        small_store(tmp_path / store_format, store_format, records(4, seed=number), per_shard=2)
        stores.append(open_store(str(tmp_path / store_format)))
    at = [np.array([3, 0]), np.array([1, 2, 4])]
    asked = [[5, 2], [0, 7, 7]]
    places = [store.places(frames) for store, frames in zip(stores, asked, strict=True)]
    joined = assemble(JoinedPlaces(places, at), COLUMNS, index=np.arange(5), time=np.zeros(5))
    for store, positions, frames in zip(stores, at, asked, strict=True):
        for position, frame in zip(positions.tolist(), frames, strict=True):
            one = store.batch([frame], COLUMNS)
            rows = slice(*joined.tokens.offset[position : position + 2].tolist())
            assert torch.equal(joined.tokens.feat[rows], one.tokens.feat)
            assert torch.equal(joined.points.depth[position], one.points.depth[0])
            assert joined.rgb.encoded(position) == one.rgb.encoded(0)
            assert torch.equal(joined.extra["step"][position], one.extra["step"][0])
    small_store(tmp_path / "other", "zarr", [small_record("a", channels=8)], C=8)
    others = [stores[0].places([0]), open_store(str(tmp_path / "other")).places([0])]
    with pytest.raises(ValueError, match=r"rows of other shapes in 'tokens/feat'"):
        assemble(JoinedPlaces(others, [np.array([0]), np.array([1])]), ("tokens",), index=at[0], time=np.zeros(2))


def test_a_shard_with_other_frames_than_the_index_is_named(store: Store) -> None:
    store._table.start = store.start.copy()
    store._table.start[1:] += 1
    with pytest.raises(ShardError, match="other frames than the index says"):
        store.batch([0], ("tokens",))
    with pytest.raises(ShardError, match="other frames than the index says"):
        store.batch([0], ("points",))


def test_counts_and_cells_stay_as_compact_as_they_are_stored(store: Store) -> None:
    batch = store.batch([0, 4])
    tokens, cells = batch.need_tokens(), batch.need_cells()
    assert tokens.count.dtype == cells.token.dtype == cells.count.dtype == torch.uint16
    assert cells.cell.dtype == torch.uint8
    assert cells.packed_cell().dtype == cells.packed_token(tokens).dtype == torch.int64
    assert int(cells.packed_token(tokens).max()) < len(tokens.feat)
