"""Compressed frames, one by one and in threads."""

import statistics
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_equality import assert_equal
from numcodecs import blosc
from store_factory import FORMATS, small_records, small_store

from pipeline.store import ShardError, frame_codecs, open_store
from pipeline.store.decode import unpack_all
from pipeline.store.loader import Store

WANTED = [7, 0, 3, 3, 1, 9, 4]


@pytest.fixture(params=FORMATS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    small_store(tmp_path / "s", request.param, small_records(6, state=3), per_shard=2)
    return open_store(str(tmp_path / "s"))


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_threads_and_clips_give_the_same_points(store: Store, threads: int) -> None:
    batch = store.batch(WANTED, ("points",))
    clips, frames = store.clip_of(WANTED)
    for b, (clip, frame) in enumerate(zip(clips, frames, strict=True)):
        points = store[int(clip)].points
        for name in ("pixel", "rgb", "depth", "conf"):
            np.testing.assert_array_equal(getattr(batch.points, name)[b].numpy(), getattr(points, name)[frame])
    assert batch.points.pixel.dtype == torch.int32 and batch.points.conf.dtype == torch.uint8
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("cla-batch")}
    assert threads == 1 or names


def test_single_arrays_come_by_their_names(store: Store) -> None:
    whole = store.batch(WANTED, ("points", "camera"))
    assert whole.points is not None and whole.camera is not None
    some = store.batch(WANTED, ("points/rgb", "points/depth", "camera/range"))
    assert some.points is None and some.camera is None
    expected = {
        "points/rgb": whole.points.rgb,
        "points/depth": whole.points.depth,
        "camera/range": whole.camera.range,
    }
    assert_equal(some.extra, expected)
    with pytest.raises(ValueError, match=r"unknown column 'points/colour'.*points/NAME, camera/NAME"):
        store.batch([0], ("points/colour",))
    with pytest.raises(ValueError, match="unknown column 'tokens/coord'"):
        store.batch([0], ("tokens/coord",))


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("part", ["values", "size", "body"])
def test_a_damaged_frame_is_named_and_the_others_are_read(tmp_path: Path, part: str, threads: int) -> None:
    layout = small_store(tmp_path / "s", "zarr", small_records(4), per_shard=4)
    path = Path(layout.files.path(layout.data_name("000000")))
    data = bytearray(path.read_bytes())
    reader, _ = open_store(layout.url).locate(0)
    column = reader._columns["points/depth"]  # type: ignore[attr-defined]
    begin, size = column._table()[5].tolist()
    at = column._start + begin
    if part == "body":
        data[at + 16 : at + size] = bytes(size - 16)
    else:
        where = at + {"values": 4, "size": 12}[part]
        data[where : where + 4] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    store = open_store(layout.url)
    with pytest.raises(ShardError, match=r"Shard 000000, array points/depth: frame 5 .*"):
        store.batch(range(10), ("points",))
    assert len(store.batch([0, 1, 2, 3, 4, 6], ("points",)).points.depth) == 6


def test_nothing_to_do_is_done_at_once() -> None:
    unpack_all([])


def test_frames_are_decompressed_without_the_gil() -> None:
    """Another thread runs on during a call: held, the GIL would let it in just before and just after only."""
    values = np.arange(1 << 24, dtype=np.uint32)
    data, out = blosc.compress(values, b"zstd", 5, blosc.BITSHUFFLE), np.empty_like(values)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.0005):
            ticks.append(time.perf_counter())

    def ticks_during_a_call() -> int:
        start = time.perf_counter()
        frame_codecs.blosc.decompress(data, out)
        stop = time.perf_counter()
        return sum(start < at < stop for at in ticks[-50:])

    other = threading.Thread(target=tick)
    other.start()
    try:  # on a loaded machine the thread may be let run between calls only, for a while
        until = time.monotonic() + 60
        during = 0.0
        while during < 5 and time.monotonic() < until:
            during = statistics.median(ticks_during_a_call() for _ in range(9))
    finally:
        done.set()
        other.join(30)
    assert during >= 5
    np.testing.assert_array_equal(out, values)
