import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_factory import FORMATS, folder_bytes, small_manifest, small_record, small_store, write_shards

from pipeline.store import ShardError, StoreError
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums
from pipeline.store.writer import ShardWriter


@pytest.fixture
def layout(tmp_path):
    return StoreLayout.create(str(tmp_path / "s"), small_manifest())


def changed(record, name, change):
    """The record with `change` applied to a copy of array `name`."""
    family, _, short = name.rpartition("/")
    owner = getattr(record, family) if family else record
    array = getattr(owner, short).copy()
    array = change(array)
    if not family:
        return replace(record, **{short: array})
    return replace(record, **{family: replace(owner, **{short: array})})


def setting(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("array", "change", "sentence"),
    [
        ("tokens/feat", lambda a: a.astype("f4"), "dtype float32, expected float16"),
        ("tokens/feat", lambda a: a[:-1], "along axis 0"),
        ("tokens/feat", setting((0, 0), np.nan), "not finite"),
        ("tokens/coord", setting((1, 2), np.inf), "not finite"),
        ("tokens/offset", setting(0, 1), "offsets start at"),
        ("tokens/offset", setting(1, 10_000), "offsets fall"),
        ("tokens/count", setting(0, 0), "without points"),
        ("tokens/count", setting(0, 500), "there are 96 slots"),
        ("points/pixel", setting((0, 0), 28 * 28), "outside of 28x28"),
        ("points/pixel", lambda a: a[:, ::-1].copy(), "points/pixel"),
        ("points/conf", setting((0, -1), 7), "slots past the frame's 60 points"),
        ("cells/cell", setting(0, 200), "outside of 14x14"),
        ("cells/token", setting(0, 999), "outside of the frame's"),
        ("cells/count", setting(0, 50), "disagree with the points"),
        ("camera/range", setting((0, 0), 1e6), "is above greatest"),
        ("camera/normalisation", setting((1, 3), 0.0), "not positive"),
        ("rgb/offset", setting(-1, 5), "offsets"),
        ("time", setting(1, 0.0), "do not increase"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_in_a_sentence(layout, array, change, sentence):
    writer = ShardWriter(layout, "000000")
    with pytest.raises(ValueError, match=r"Clip 'a' does not fit the store: .*") as caught:
        writer.add(changed(small_record("a"), array, change))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    writer.add(small_record("a"))  # the refused clip left nothing behind
    assert writer.commit().rows[0].key == "a"


def test_keys_that_webdataset_would_cut_are_refused(layout):
    with pytest.raises(ValueError, match="safe_key"):
        ShardWriter(layout, "000000").add(small_record("a.b"))


def test_clips_of_a_shard_hold_the_same_arrays_and_keys_once(layout):
    writer = ShardWriter(layout, "000000")
    writer.add(small_record("a", state=3))
    with pytest.raises(ValueError, match="in shard 000000 already"):
        writer.add(small_record("a", state=3))
    with pytest.raises(ValueError, match="'b' has state as nothing"):
        writer.add(small_record("b"))


@pytest.mark.parametrize("store_format", FORMATS)
def test_resume_after_an_abort_gives_the_same_bytes(tmp_path, store_format):
    records = [small_record(f"k{i}") for i in range(4)]
    small_store(tmp_path / "whole", store_format, records)
    layout = StoreLayout.create(str(tmp_path / "cut"), small_manifest(store_format))
    write_shards(layout, records[:2], 2)
    writer = ShardWriter(layout, "000001")
    writer.add(records[2])
    writer.abort()
    assert layout.committed() == ["000000"]
    # what a process that is killed in the middle leaves
    (tmp_path / "cut/shards" / f"{Path(layout.data_name('000001')).name}.tmp-1234abcd").write_bytes(b"half")
    Path(layout.files.path(layout.data_name("000001"))).write_bytes(b"renamed, not committed")
    again = StoreLayout.create(layout.url, small_manifest(store_format), "resume")
    assert len(again.remove_leftovers()) == 2
    assert again.done_keys() == {"k0", "k1"}
    writer = ShardWriter(again, "000001")
    for record in records[2:]:
        writer.add(record)
    writer.commit()
    again.write_index()
    again.write_rejected()
    write_sums(again)
    assert folder_bytes(tmp_path / "cut") == folder_bytes(tmp_path / "whole")


def test_a_shard_of_rejected_clips_has_a_sidecar_and_no_data(layout):
    writer = ShardWriter(layout, "000000")
    writer.reject("bad", "The file is empty.")
    sidecar = writer.commit()
    assert sidecar.file is None and layout.committed() == ["000000"]
    assert layout.files.names("shards") == ["000000.json"]
    assert [bad.reason for bad in layout.rejected()] == ["The file is empty."]


@pytest.mark.parametrize("full_at", ["data", "sync", "sidecar"])
def test_a_full_disk_leaves_no_half_shard(layout, monkeypatch, full_at):
    write_shards(layout, [small_record("first")], 1)
    before = folder_bytes(Path(layout.url))
    calls = {"sync": 0}
    sync = os.fsync

    def no_room(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fsync(descriptor):
        calls["sync"] += 1
        # of a shard: its data, its folder, its sidecar, its folder
        if calls["sync"] == {"sync": 1, "sidecar": 3}.get(full_at):
            no_room()
        sync(descriptor)

    writer = ShardWriter(layout, "000001")
    writer.add(small_record("second"))
    monkeypatch.setattr(os, "fsync", fsync)
    if full_at == "data":
        monkeypatch.setattr("zipfile.ZipFile.writestr", no_room)
    with pytest.raises(StoreError, match=r"No room to write .*--resume"):
        writer.commit()
    after = folder_bytes(Path(layout.url))
    left = {name: data for name, data in after.items() if name not in before}
    # data without its sidecar is not committed, and no temporary file is left
    assert set(left) <= ({"shards/000001.zarr.zip"} if full_at == "sidecar" else set())
    assert layout.committed() == ["000000"]


def test_a_shard_that_reads_back_otherwise_is_not_kept(layout, monkeypatch):
    from pipeline.store import zarr_writer

    honest = zarr_writer.write_zarr

    def flips_a_bit(path, records):
        sizes = honest(path, records)
        data = bytearray(path.read_bytes())
        at = data.index(records[0].tokens.feat.tobytes())
        data[at] ^= 1
        path.write_bytes(bytes(data))
        return sizes

    monkeypatch.setattr(zarr_writer, "write_zarr", flips_a_bit)
    writer = ShardWriter(layout, "000000")
    writer.add(small_record("a"))
    with pytest.raises(ShardError, match=r"tokens/feat.*reads back otherwise"):
        writer.commit()
    assert layout.files.names("shards") == []
