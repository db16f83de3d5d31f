"""Frames of points come back as they were, smaller than before, also from shards that were written without filters."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from batch_equality import assert_equal
from store_factory import small_records, small_store

from data_specs.examples import example_record
from pipeline.store import ShardError, open_store, zarr_writer
from pipeline.store.columns import record_arrays
from pipeline.store.frame_codecs import CODECS, FrameCodec
from pipeline.store.verify import verify
from pipeline.store.zarr_writer import write_zarr

PLAIN = dict.fromkeys(CODECS, FrameCodec())
"""What stores of the first version were written with, but for the level."""


def test_differences_wrap_around_and_planes_are_turned() -> None:
    column = np.array([[[1, 2, 3], [0, 255, 3]]], "|u1")
    assert FrameCodec(planes=True).filtered(column).tolist() == [[[1, 0], [2, 255], [3, 3]]]
    assert FrameCodec(planes=True, delta=True).filtered(column).tolist() == [[[1, 255], [2, 253], [4, 0]]]
    assert FrameCodec(delta=True).filtered(np.array([[5, 3, 65535]], "<u2")).tolist() == [[5, 65534, 65532]]


def test_shards_without_filters_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_writer, "CODECS", PLAIN)
    old = open_store(small_store(tmp_path / "old").url)
    monkeypatch.undo()
    new = open_store(small_store(tmp_path / "new").url)
    assert old.digest == new.digest
    assert verify(old.layout) == verify(new.layout) == []
    assert_equal(old.batch(range(5), ("points",)), new.batch(range(5), ("points",)))


def test_a_realistic_frame_takes_less_than_without_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [example_record(frames=2, cell=0.2)]
    noise = np.random.default_rng(0).integers(-2, 3, records[0].points.rgb.shape)
    records[0].points.rgb[:] = np.clip(records[0].points.rgb + noise, 0, 255)
    new = write_zarr(tmp_path / "new.zip", records)
    monkeypatch.setattr(zarr_writer, "CODECS", PLAIN)
    old = write_zarr(tmp_path / "old.zip", records)
    assert {name: new[name] < old[name] for name in CODECS} == dict.fromkeys(CODECS, True)
    assert {name: size for name, size in new.items() if name not in CODECS} == {
        name: size for name, size in old.items() if name not in CODECS
    }


def test_plain_zarr_reads_single_frames_of_filtered_arrays(tmp_path: Path) -> None:
    records = small_records(4)
    write_zarr(tmp_path / "s.zip", records)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr says that `numcodecs.delta` is not in the specification
        group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "s.zip", mode="r"), mode="r", zarr_format=3)
        for name in CODECS:
            expected = np.concatenate([record_arrays(record)[name] for record in records])
            np.testing.assert_array_equal(group[name][5], expected[5])
            np.testing.assert_array_equal(group[name][2:9:3], expected[2:9:3])


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "bytes"}, {"name": "zstd"}],
        [{"name": "numcodecs.delta", "configuration": {"dtype": "<u4"}}, {"name": "bytes"}, {"name": "blosc"}],
        [{"name": "transpose", "configuration": {"order": [2, 1, 0]}}, {"name": "bytes"}, {"name": "blosc"}],
        [
            {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}},
            {"name": "transpose", "configuration": {"order": [0, 2, 1]}},
            {"name": "bytes"},
            {"name": "blosc"},
        ],
    ],
)
def test_other_steps_are_refused_not_misread(codecs: list) -> None:
    with pytest.raises(ValueError, match="frames are encoded with"):
        FrameCodec.of(codecs, np.dtype("<u2"))


def test_a_shard_with_other_steps_is_named(tmp_path: Path) -> None:
    layout = small_store(tmp_path / "s", per_shard=5)
    path = next((tmp_path / "s" / "shards").glob("*.zip"))
    data = path.read_bytes()
    assert data.count(b"numcodecs.delta") == 4
    path.write_bytes(data.replace(b"numcodecs.delta", b"numcodecs.gamma"))
    with pytest.raises(ShardError, match=r"points/.*numcodecs.gamma"):
        open_store(layout.url).batch([0], ("points",))
