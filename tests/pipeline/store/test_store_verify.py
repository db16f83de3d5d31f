import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from store_factory import FORMATS, small_record, small_records, small_store

from data_specs.shards import ARRAYS
from pipeline.store import open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.verify import verify
from pipeline.store.writer import ShardWriter


@pytest.fixture(params=FORMATS)
def layout(request, tmp_path):
    return small_store(tmp_path / "s", request.param, small_records(4, state=3, action=2), bad=[("x", "is broken")])


def data_file(layout, shard):
    return Path(layout.files.path(layout.data_name(shard)))


def flip(path, at, bit=0x10):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))


def find_array(path, name, record):
    """Where a byte of a raw array of `record` is in a data file."""
    family, _, short = name.rpartition("/")
    owner = getattr(record, family) if family else record
    data = getattr(owner, short).tobytes()
    return path.read_bytes().index(data) + len(data) // 2


def test_a_whole_store_has_no_damage(layout):
    assert verify(layout) == []


RAW = ["tokens/feat", "tokens/coord", "tokens/count", "cells/token", "cells/count", "rgb/data", "time", "state"]


@pytest.mark.parametrize("name", [*RAW, "camera/extrinsic", "camera/normalisation", "action"])
def test_a_flipped_bit_names_its_shard_and_array(layout, name):
    path = data_file(layout, "000001")
    flip(path, find_array(path, name, layout_record(layout, 3)))
    damages = verify(layout)
    assert {damage.shard for damage in damages} == {"000001"}
    # the file's checksum, then the array; rules that rest on it may name its neighbours too
    assert name in {damage.array for damage in damages}
    assert any("SHA-256" in damage.problem for damage in damages)


def layout_record(layout, index):
    return open_store(layout.url)[index]


@pytest.mark.parametrize("name", [name for name in ARRAYS if name.startswith("points/")])
def test_a_flipped_bit_in_compressed_points_names_the_array(tmp_path, name):
    layout = small_store(tmp_path, "zarr")
    path = data_file(layout, "000001")
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.startswith(f"{name}/c/"))
        inside = archive.read(info)
    flip(path, path.read_bytes().index(inside) + 20)
    assert {(d.shard, d.array) for d in verify(layout) if d.array} == {("000001", name)}


def test_flipped_bits_in_packed_points_of_a_tar_name_points(tmp_path):
    layout = small_store(tmp_path, "webdataset")
    path = data_file(layout, "000000")
    flip(path, path.read_bytes().index(b"depth.npy") + 40)
    arrays = {damage.array for damage in verify(layout) if damage.array}
    assert "points/depth" in arrays and all(name.startswith("points/") for name in arrays)


def test_a_flipped_offset_is_found_when_the_shard_is_opened(tmp_path):
    layout = small_store(tmp_path, "zarr")
    path = data_file(layout, "000001")
    with zipfile.ZipFile(path) as archive:
        offsets = archive.read("tokens/offset/c/0")
    flip(path, path.read_bytes().index(offsets) + 8 + 7, 0x80)  # the sign of the second offset
    damages = verify(layout)
    assert ("000001", "tokens/offset") in {(d.shard, d.array) for d in damages}
    assert any("offsets fall" in d.problem for d in damages)


@pytest.mark.parametrize("seed", range(3))
def test_no_corruption_passes_or_crashes(layout, seed):
    """Bits flipped anywhere, ranges overwritten, files cut: always a named shard, never an exception."""
    path = data_file(layout, "000001")
    whole = path.read_bytes()
    rng = np.random.default_rng(seed)
    for round_ in range(12):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=int(rng.integers(1, 4))):
            data[at] ^= 1 << int(rng.integers(8))
        if round_ % 4 == 0:
            start = int(rng.integers(len(data) - 50))
            data[start : start + 50] = rng.bytes(50)
        if round_ % 5 == 0:
            del data[int(rng.integers(len(data))) :]
        path.unlink()  # a mapped file must not change under its reader
        path.write_bytes(bytes(data))
        found = verify(layout)
        assert {damage.shard for damage in found} == ({"000001"} if bytes(data) != whole else set())


@pytest.mark.parametrize("keep", [0, 1, 700, 0.5, -1])
def test_a_truncated_file_is_named(layout, keep):
    path = data_file(layout, "000001")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    damages = verify(layout)
    assert {damage.shard for damage in damages} == {"000001"}
    assert any(f"{len(data):,} were committed" in damage.problem for damage in damages)


def test_every_byte_of_a_file_counts(tmp_path):
    """Bytes outside of all arrays (headers, padding) are found by the file's checksum."""
    layout = small_store(tmp_path, "webdataset")
    path = data_file(layout, "000000")
    flip(path, path.stat().st_size - 1)
    (damage,) = verify(layout)
    assert damage.shard == "000000" and damage.array == "" and "outside of the arrays" in damage.problem


def test_a_missing_data_file_is_named(layout):
    data_file(layout, "000000").unlink()
    (damage,) = verify(layout)
    assert damage.shard == "000000" and "is missing" in damage.problem


def test_a_missing_sidecar_is_named(layout, tmp_path):
    (tmp_path / "s/shards/000001.json").unlink()
    damages = verify(layout)
    assert ("000001", "") in {(d.shard, d.array) for d in damages}
    assert any("has no sidecar" in d.problem for d in damages)
    assert any(d.shard == "index.parquet" and "clips/02" in d.problem for d in damages)


@pytest.mark.parametrize("text", ["{", '{"schema_version": 1}', '{"schema_version": 9}', "[]"])
def test_a_damaged_sidecar_is_named(layout, tmp_path, text):
    (tmp_path / "s/shards/000001.json").write_text(text)
    assert "000001" in {damage.shard for damage in verify(layout)}


def test_a_sidecar_that_says_something_else_is_named(layout, tmp_path):
    path = tmp_path / "s/shards/000001.json"
    values = json.loads(path.read_text())
    values["rows"][0]["text"] = "Moving another thing"
    values["arrays"]["tokens/coord"]["crc32"] ^= 1
    path.write_text(json.dumps(values))
    damages = verify(layout)
    assert ("000001", "tokens/coord") in {(d.shard, d.array) for d in damages}
    assert any(d.shard == "index.parquet" and "clips/02" in d.problem for d in damages)


def test_foreign_files_are_named_and_temporary_ones_are_not(layout, tmp_path):
    (tmp_path / "s/shards/notes.txt").write_text("x")
    (tmp_path / "s/extra.bin").write_bytes(b"x")
    (tmp_path / "s/shards/000009.tar.tmp-12345678").write_bytes(b"x")
    assert {(d.shard, d.problem) for d in verify(layout)} == {
        ("shards/notes.txt", "is no part of the store"),
        ("extra.bin", "is no part of the store"),
    }


def test_index_and_rejections_are_compared_with_the_sidecars(layout, tmp_path):
    (tmp_path / "s/rejected.jsonl").write_text("")
    (tmp_path / "s/index.parquet").write_bytes(b"PAR1")
    assert {d.shard for d in verify(layout)} == {"index.parquet", "rejected.jsonl"}
    (tmp_path / "s/rejected.jsonl").unlink()
    (tmp_path / "s/index.parquet").unlink()
    assert all("is missing; --resume" in d.problem for d in verify(layout))
    layout.write_index()
    layout.write_rejected()
    assert verify(layout) == []


def test_a_clip_in_two_shards_is_named(layout):
    writer = ShardWriter(layout, "000002")
    writer.add(small_record("clips/01", state=3, action=2))
    writer.commit()
    assert any("'clips/01', which shard 000000 holds" in d.problem for d in verify(layout))


def test_a_swapped_shard_is_named(tmp_path):
    """A data file that is whole, but of another store."""
    small_store(tmp_path / "a", records=small_records(2))
    small_store(tmp_path / "b", records=small_records(2, seed=1))
    target = tmp_path / "a/shards/000000.zarr.zip"
    target.write_bytes((tmp_path / "b/shards/000000.zarr.zip").read_bytes())
    damages = verify(StoreLayout.open(str(tmp_path / "a")))
    assert ("000000", "tokens/feat") in {(d.shard, d.array) for d in damages}
