"""What is written is what is read, in both formats, by us and by plain zarr and webdataset."""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_factory import FORMATS, folder_bytes, small_record, small_records, small_store

from data_specs.shards import ARRAYS
from pipeline.store import open_store
from pipeline.store.columns import record_arrays, record_digest
from pipeline.store.files import MappedFile
from pipeline.store.shard import open_shard
from pipeline.store.tar import write_tar
from pipeline.store.zarr_writer import ALIGNMENT, write_zarr


def assert_equal_records(found, expected):
    assert (found.key, found.split, found.text) == (expected.key, expected.split, expected.text)
    mine, theirs = record_arrays(found), record_arrays(expected)
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


CLIP = st.fixed_dictionaries(
    {
        "frames": st.integers(1, 5),
        "kept": st.integers(1, 96),
        "seed": st.integers(0, 9),
        "cell": st.sampled_from([0.1, 0.5, 3.0]),
        "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    }
)


@settings(max_examples=15, deadline=None)
@given(
    clips=st.lists(CLIP, min_size=1, max_size=4),
    robot=st.booleans(),
    rows=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    trailing=st.lists(st.integers(1, 3), max_size=2),
)
def test_both_formats_give_back_what_was_written(clips, robot, rows, trailing):
    dims = {"state": 3, "action": 2} if robot else {}
    records = [small_record(f"k{i}", **clip, **dims) for i, clip in enumerate(clips)]
    for record, length in zip(records, rows, strict=False):
        record.extra["vision/cls"] = np.ones((length, *trailing), "<f2")
    with tempfile.TemporaryDirectory() as folder:
        digests = set()
        for store_format in FORMATS:
            small_store(Path(folder) / store_format, store_format, records)
            store = open_store(f"{folder}/{store_format}")
            assert len(store) == len(records) and store.num_frames == sum(map(len, records))
            for found, expected in zip(store, records, strict=True):
                assert_equal_records(found, expected)
                assert record_digest(found) == record_digest(expected)
            digests.add(store.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("store_format", FORMATS)
def test_two_writes_are_equal_byte_for_byte(tmp_path, store_format):
    for name in ("a", "b"):
        small_store(tmp_path / name, store_format, bad=[("x", "is broken")])
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_the_digest_is_of_the_content_alone(tmp_path):
    stores = [
        small_store(tmp_path / f"{store_format}{per}", store_format, per_shard=per)
        for store_format in FORMATS
        for per in (1, 2, 5)
    ]
    digests = {open_store(layout.url).digest for layout in stores}
    assert len(digests) == 1
    changed = small_records()
    changed[3].camera.range[0, 1] += 1
    assert open_store(small_store(tmp_path / "c", records=changed).url).digest not in digests


def test_plain_zarr_reads_a_shard(tmp_path):
    records = small_records(3, state=4)
    write_zarr(tmp_path / "s.zarr.zip", records)
    group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "s.zarr.zip", mode="r"), mode="r", zarr_format=3)
    assert [clip["key"] for clip in group.attrs["clips"]] == [record.key for record in records]
    assert group["clips/offset"][:].tolist() == [0, 1, 3, 6]
    for name in (n for n in ARRAYS if not n.endswith("/offset") and n not in ("tokens/scale", "action", "is_pad")):
        expected = np.concatenate([record_arrays(record)[name] for record in records])
        np.testing.assert_array_equal(group[name][:], expected, err_msg=name)
    assert group["points/depth"].metadata.codecs[0].chunk_shape == (1, 96)


def test_a_zarr_shard_can_be_mapped(tmp_path):
    write_zarr(tmp_path / "s.zarr.zip", small_records(3))
    data = (tmp_path / "s.zarr.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "s.zarr.zip") as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
    assert all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    feat = next(info for info in infos if info.filename == "tokens/feat/c/0/0")
    expected = np.concatenate([record.tokens.feat for record in small_records(3)]).tobytes()
    start = data.index(expected)
    assert start % ALIGNMENT == 0 and feat.header_offset < start
    reader = open_shard(MappedFile(str(tmp_path / "s.zarr.zip")), "s", "zarr")
    assert reader.rows("tokens/feat", 1, 0, 2).base is not None  # a view, no copy


def test_plain_webdataset_reads_a_shard(tmp_path):
    records = small_records(3)
    write_tar(tmp_path / "s.tar", records)
    samples = list(webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [record.key for record in records]
    for sample, record in zip(samples, records, strict=True):
        assert sample["json"]["text"] == record.text and sample["json"]["frames"] == len(record)
        np.testing.assert_array_equal(sample["tokens.feat.npy"], record.tokens.feat)
        np.testing.assert_array_equal(sample["camera.intrinsic.npy"], record.camera.intrinsic)
        np.testing.assert_array_equal(sample["points.npz"]["depth"], record.points.depth)


def test_a_tar_shard_names_no_machine_and_long_keys_survive(tmp_path):
    key = "clips/" + "long-" * 40
    write_tar(tmp_path / "s.tar", [small_record(key)])
    reader = open_shard(MappedFile(str(tmp_path / "s.tar")), "s", "webdataset")
    assert reader.keys == (key,) and reader.lengths.tolist() == [3]


def test_nothing_is_unpickled(tmp_path):
    """An object array in a tar must be refused, not loaded."""
    write_tar(tmp_path / "s.tar", [small_record("a")])
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    import tarfile

    with tarfile.open(tmp_path / "s.tar") as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive]
    with tarfile.open(tmp_path / "e.tar", "w") as archive:
        for member, data in members:
            data = evil.getvalue() if member.name == "a.tokens.coord.npy" else data
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    reader = open_shard(MappedFile(str(tmp_path / "e.tar")), "e", "webdataset")
    with pytest.raises(Exception, match=r"tokens/coord: clip a: .*expected numbers"):
        reader.clip_array("tokens/coord", 0)


def test_stored_bytes_are_reported_by_array(tmp_path):
    records = small_records(3)
    for write, name in ((write_zarr, "s.zarr.zip"), (write_tar, "s.tar")):
        sizes = write(tmp_path / name, records)
        total = (tmp_path / name).stat().st_size
        assert sizes["tokens/feat"] >= sum(record.tokens.feat.nbytes for record in records)
        assert sum(sizes.values()) < total
    assert json.dumps(sizes)
