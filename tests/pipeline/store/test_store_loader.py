import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from store_factory import FORMATS, SIZE, small_record, small_records, small_store
from torch.utils.data import DataLoader

from pipeline.config import RequestError
from pipeline.store import ShardError, open_store
from pipeline.store.columns import record_digest

ALL = ("tokens", "cells", "points", "camera", "rgb", "state", "action", "is_pad")


@pytest.fixture(params=FORMATS)
def store(request, tmp_path):
    small_store(tmp_path / "s", request.param, small_records(6, state=3, action=2), per_shard=4)
    return open_store(str(tmp_path / "s"))


def test_frames_are_numbered_through_all_clips(store):
    assert len(store) == 6 and store.num_frames == 1 + 2 + 3 + 4 + 1 + 2
    assert store.frames(2) == range(3, 6) and store.frames(-1) == range(11, 13)
    clip, frame = store.clip_of([0, 3, 5, 12])
    assert clip.tolist() == [0, 2, 2, 5] and frame.tolist() == [0, 0, 2, 1]
    info = store.info(3)
    assert (info.key, info.text, info.frames) == ("clips/03", "Moving 3 ✓", 4)
    assert info.time.tolist() == [0.0, 0.25, 0.5, 0.75] and store.info(3).digest == record_digest(store[3])
    assert store.clips["key"].to_pylist()[5] == "clips/05" and store.columns() == ALL
    for wrong in (6, -7):
        with pytest.raises(IndexError, match="outside of the store's 6 clips"):
            store[wrong]


def test_a_batch_packs_the_frames_asked_for_in_their_order(store):
    wanted = [12, 0, 4, 4]
    batch = store.batch(wanted, columns=ALL)
    assert len(batch) == 4 and batch.index.tolist() == wanted and batch.time.tolist() == [0.25, 0.0, 0.25, 0.25]
    clips, frames = store.clip_of(wanted)
    for b, (clip, frame) in enumerate(zip(clips, frames, strict=True)):
        record = store[int(clip)]
        rows = slice(*record.tokens.offset[frame : frame + 2])
        mine = slice(*batch.tokens.offset[b : b + 2].tolist())
        np.testing.assert_array_equal(batch.tokens.feat[mine].numpy(), record.tokens.feat[rows])
        np.testing.assert_array_equal(batch.tokens.count[mine].numpy(), record.tokens.count[rows])
        rows, mine = slice(*record.cells.offset[frame : frame + 2]), slice(*batch.cells.offset[b : b + 2].tolist())
        np.testing.assert_array_equal(batch.cells.token[mine].numpy(), record.cells.token[rows])
        for name in ("pixel", "rgb", "depth", "conf"):
            np.testing.assert_array_equal(getattr(batch.points, name)[b].numpy(), getattr(record.points, name)[frame])
        np.testing.assert_array_equal(batch.camera.extrinsic[b].numpy(), record.camera.extrinsic[frame])
        start, stop = record.rgb.offset[frame : frame + 2]
        assert batch.rgb.encoded(b) == record.rgb.data[start:stop].tobytes()
        np.testing.assert_array_equal(batch.action[b].numpy(), record.action[frame])
        assert bool(batch.is_pad[b]) == bool(record.is_pad[frame])


def test_both_formats_give_equal_batches(tmp_path):
    for store_format, per_shard in (("zarr", 2), ("webdataset", 3)):
        small_store(tmp_path / store_format, store_format, per_shard=per_shard)
    a, b = (open_store(str(tmp_path / f)).batch([3, 1, 7], ALL[:5]) for f in FORMATS)
    seen = []
    a.map(lambda tensor: seen.append(tensor) or tensor)
    others = []
    b.map(lambda tensor: others.append(tensor) or tensor)
    assert len(seen) == len(others) > 15
    for mine, theirs in zip(seen, others, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_only_the_columns_asked_for_are_read(store, monkeypatch):
    reader, _ = store.locate(0)
    read = []
    for method in ("rows", "extent", "unpack"):
        real = getattr(type(reader), method)
        monkeypatch.setattr(
            type(reader), method, lambda self, name, *a, real=real: read.append(name) or real(self, name, *a)
        )
    batch = store.batch([0, 1], columns=("tokens",))
    assert set(read) == {"tokens/feat", "tokens/coord", "tokens/count"}
    read.clear()
    store.batch([0, 1], columns=("points/conf",))
    assert set(read) == {"points/conf"}
    assert batch.cells is None and batch.points is None and batch.state is None


def test_wrong_requests_get_sentences(store, tmp_path):
    with pytest.raises(ValueError, match=r"unknown column 'token'\. Did you mean 'tokens'\?"):
        store.batch([0], columns=("token",))
    with pytest.raises(ValueError, match=r"the store has no 'extra/vision'"):
        store.batch([0], columns=("extra/vision",))
    with pytest.raises(IndexError, match="outside of the store's 13 frames"):
        store.batch([13])
    with pytest.raises(IndexError, match="list of frame numbers"):
        store.batch([0.5])
    with pytest.raises(ValueError, match="at least one frame"):
        store.batch([])
    with pytest.raises(RequestError, match=r"no clips of split 'test'\. It has: train"):
        open_store(store.layout.url, split="test")


def test_extra_arrays_come_with_the_clip_and_by_frame(tmp_path):
    records = [small_record("a", frames=2), small_record("b", frames=3)]
    for record in records:
        record.extra["vision/cls"] = np.arange(len(record) * 4, dtype="<f4").reshape(-1, 4)
        record.extra["language"] = np.ones((1, 5), "<f2")
    for store_format in FORMATS:
        small_store(tmp_path / store_format, store_format, records)
        store = open_store(str(tmp_path / store_format))
        batch = store.batch([4, 0], columns=("extra/vision/cls",))
        assert batch.extra["vision/cls"].tolist() == [[8.0, 9.0, 10.0, 11.0], [0.0, 1.0, 2.0, 3.0]]
        assert store[1].extra["language"].shape == (1, 5)
        with pytest.raises(ValueError, match=r"read it with store\[i\]\.extra"):
            store.batch([0, 4], columns=("extra/language",))


def test_splits_can_be_opened_alone(tmp_path):
    records = [small_record(f"k{i}", split="validation" if i % 2 else "train") for i in range(4)]
    small_store(tmp_path, records=records, per_shard=3)
    store = open_store(str(tmp_path), split="validation")
    assert [record.key for record in store] == ["k1", "k3"]
    assert store.batch([5]).index.tolist() == [5] and store.num_frames == 6
    assert store.digest == open_store(str(tmp_path)).digest


def test_a_spawned_worker_opens_the_store_by_itself(tmp_path):
    small_store(tmp_path)
    store = open_store(str(tmp_path))
    expected = store.batch([0, 1])
    context = multiprocessing.get_context("spawn")
    (batch, *_) = store.view().loader(batch_size=2, num_workers=1, multiprocessing_context=context)
    assert torch.equal(batch.tokens.feat, expected.tokens.feat)


def test_a_dataloader_with_workers_reads_everything_once(store):
    store.batch([0])  # opens a shard in the parent, which a forked worker must not inherit badly
    loader = store.view(("tokens", "points")).loader(batch_size=5, shuffle=True, num_workers=2)
    batches = list(loader)
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(13))
    for batch in batches:
        assert torch.equal(batch.tokens.feat, store.batch(batch.index).tokens.feat)


def test_a_dataloader_gives_clips(store):
    loader = DataLoader(store, batch_size=None, num_workers=2)
    assert [record_digest(record) for record in loader] == [record_digest(record) for record in store]


def test_a_store_is_pickled_without_its_handles(store):
    before = record_digest(store[1])
    data = pickle.dumps(store)
    assert len(data) < 20_000
    assert record_digest(pickle.loads(data)[1]) == before


def test_coordinates_follow_from_depth_and_camera(store):
    """xyz against the pinhole camera written out by hand, in float64."""
    record = store[3]
    clouds = store.clouds(store.frames(3))
    kept = int(record.tokens.count[slice(*record.tokens.offset[:2])].sum())
    assert clouds.kept.tolist()[:2] == [kept, 96] and kept == 60
    near, far = record.camera.range[0].astype(float)
    depth = near + record.points.depth[0, :kept] / 65535 * (far - near)
    row, column = np.divmod(record.points.pixel[0, :kept].astype(int), SIZE)
    k = record.camera.intrinsic[0].astype(float)
    x, y = (column - k[0, 2]) / k[0, 0] * depth, (row - k[1, 2]) / k[1, 1] * depth
    camera = np.stack([x, y, depth], axis=1)
    rotation, translation = record.camera.extrinsic[0, :, :3].astype(float), record.camera.extrinsic[0, :, 3]
    world = (camera - translation) @ rotation
    np.testing.assert_allclose(clouds.xyz[0, :kept].numpy(), world, atol=1e-5)
    assert not clouds.xyz[0, kept:].any() and set(clouds.token[0, kept:].tolist()) == {-1}
    # the mean of a token's points is its stored coordinate
    unit = store.clouds(store.frames(3), normalised=True)
    for token in range(int(unit.token[0].max()) + 1):
        mean = unit.xyz[0][unit.token[0] == token].mean(0).numpy()
        np.testing.assert_allclose(mean, record.tokens.coord[token].astype(float), atol=2e-3)
    assert torch.equal(store.xyz(store.frames(3)), clouds.xyz)


def test_pairs_never_leave_their_clip(store):
    pairs = store.pairs(0.5)
    # clips of 1, 2, 3, 4, 1, 2 frames a quarter of a second apart
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(3, 5), (6, 8), (7, 9)]
    assert pairs.clip.tolist() == [2, 3, 3] and pairs.without == 4 and pairs.apart.tolist() == [0.5] * 3
    batch = store.pair_view(pairs).loader(batch_size=2, num_workers=0)
    first = next(iter(batch))
    assert len(first) == 2 and (first.second.time - first.first.time).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"no two frames of a clip are 3 s apart.*spans 0\.75 s"):
        store.pairs(3.0)
    with pytest.raises(ValueError, match="above 0"):
        store.pairs(0.0)


def test_a_missing_data_file_is_named(store):
    import pathlib

    pathlib.Path(store.layout.files.path(store.layout.data_name("000001"))).unlink()
    store = open_store(store.layout.url)
    assert store[0].key == "clips/00"
    with pytest.raises(ShardError, match=r"Shard 000001: its data file shards/000001\.\S+ is missing"):
        store[5]


def test_an_empty_store_opens(tmp_path):
    small_store(tmp_path, records=[])
    store = open_store(str(tmp_path))
    assert len(store) == 0 and store.num_frames == 0 and store.columns() == ()
    with pytest.raises(ValueError, match="no two frames"):
        store.pairs(1.0)
