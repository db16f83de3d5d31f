import json

import numpy as np
import pytest
from store_factory import CHANNELS, FORMATS, POINTS, small_records, small_store

from pipeline.config import RequestError
from pipeline.inspect_shards import inspect_store
from pipeline.store import open_store


@pytest.mark.parametrize("store_format", FORMATS)
def test_the_figures_are_those_of_the_clips(tmp_path, store_format):
    records = small_records(5)
    small_store(tmp_path, store_format, records, bad=[("x", "is broken")])
    summary = inspect_store(str(tmp_path), verify=True)
    tokens = np.concatenate([np.diff(record.tokens.offset) for record in records])
    assert (summary.clips, summary.frames, summary.shards) == (5, 11, 3)
    assert summary.tokens_per_frame.model_dump() == {
        "min": tokens.min(),
        "median": np.median(tokens),
        "max": tokens.max(),
    }
    assert sum(summary.tokens_histogram.counts) == 11
    assert summary.tokens_histogram.edges[0] <= tokens.min() and summary.tokens_histogram.edges[-1] > tokens.max()
    assert summary.points_per_frame.min == 60 and summary.points_per_frame.max == POINTS
    files = sum(path.stat().st_size for path in (tmp_path / "shards").iterdir() if path.suffix != ".json")
    assert summary.bytes == files and summary.bytes_per_frame == files / 11
    assert summary.bytes_per_frame_by_array["tokens/feat"] >= tokens.sum() * CHANNELS * 2 / 11
    assert sum(summary.bytes_per_frame_by_array.values()) < summary.bytes_per_frame
    assert summary.dense_layout == "[96, 16] float16" and summary.dense_bytes_per_frame == 96 * 16 * 2
    assert summary.compression_vs_dense == pytest.approx(96 * 16 * 2 / summary.bytes_per_frame)
    near = min(float(record.camera.range[:, 0].min()) for record in records)
    assert summary.depth.min == near and summary.confidence.max == 8.0
    assert summary.rejected == 1 and summary.rejected_clips[0].key == "x"
    assert summary.random_weights == ("vggt",) and summary.nonfinite == {}
    assert summary.verified is True and summary.damages == () and summary.unread == ()
    assert summary.digest == open_store(str(tmp_path)).digest


def test_json_has_what_the_issue_asks_for(tmp_path):
    small_store(tmp_path)
    values = json.loads(json.dumps(inspect_store(str(tmp_path)).as_json(), allow_nan=False))
    assert {"clips", "frames", "bytes_per_frame", "compression_vs_dense", "rejected", "verified", "digest"} <= set(
        values
    )
    assert set(values["tokens_per_frame"]) == {"min", "median", "max"} and values["verified"] is None


def test_damage_is_reported_and_the_rest_is_still_counted(tmp_path):
    small_store(tmp_path)
    path = tmp_path / "shards/000001.zarr.zip"
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "shards/000002.json").write_text("{")
    summary = inspect_store(str(tmp_path), verify=True)
    assert summary.verified is False and {damage.shard for damage in summary.damages} >= {"000001", "000002"}
    assert {entry.shard for entry in summary.unread} == {"000001", "000002"}
    assert summary.tokens_per_frame is not None and summary.clips == 4
    assert json.dumps(summary.as_json(), allow_nan=False)


def test_values_that_are_not_finite_are_counted_by_array(tmp_path):
    records = small_records(2)
    layout = small_store(tmp_path, records=records)
    path = tmp_path / "shards/000000.zarr.zip"
    data = bytearray(path.read_bytes())
    at = data.index(records[0].tokens.feat.tobytes())
    data[at : at + 6] = np.array([np.nan, np.inf, -np.inf], "<f2").tobytes()
    path.write_bytes(bytes(data))
    assert inspect_store(layout.url, verify=True).nonfinite == {"tokens/feat": 3}


def test_an_empty_store_has_figures_without_frames(tmp_path):
    small_store(tmp_path, records=[])
    summary = inspect_store(str(tmp_path), verify=True)
    assert (summary.clips, summary.frames, summary.bytes_per_frame, summary.tokens_per_frame) == (0, 0, None, None)
    assert summary.verified is True and json.dumps(summary.as_json(), allow_nan=False)


def test_a_path_without_a_store_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="expected a store"):
        inspect_store(str(tmp_path / "none"))
