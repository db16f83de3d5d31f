"""`cla bench extract`: what its figures say, not how large they are."""

import json
from pathlib import Path

import pytest

from pipeline.bench.extract import bench_extract
from pipeline.config import RequestError, override
from pipeline.recipes import extract_recipe

SMALL = ("points.count=512", "points.min_points=100", "concerto.grid=0.1")


def test_both_ways_are_measured_side_by_side_with_their_operations_and_their_rounding(tmp_path: Path) -> None:
    half = ("vggt.dtype=bfloat16", "concerto.dtype=bfloat16", "batch.frames=4", "batch.clouds=4")
    recipe = override(extract_recipe("tiny"), [*SMALL, *half])
    table = bench_extract(recipe, device="cpu", clips=2, frames=2, rounds=2)
    found = json.loads(json.dumps(table.as_json()))
    assert [row["what"] for row in found["rows"]] == ["VGGT", "points and Concerto", "whole"]
    vggt, _, whole = found["rows"]
    for row in found["rows"]:
        assert row["frames/s"] == pytest.approx(1 / row["s/frame"])
        assert row["times faster"] > 0
        assert row["share of the product's rate"] > 0
    assert whole["s/frame"] > vggt["s/frame"]
    # a shipped VGGT tiny has no point head, so both ways do the same products in VGGT, up to attention over frames
    operations = found["gflop_a_frame"]
    assert operations["published"]["VGGT"] == pytest.approx(operations["ours"]["VGGT"], rel=0.1)
    assert 1.5 < operations["ours"]["VGGT"] < 3
    assert found["dtype"] == {"published": "float32", "ours": "bfloat16"}
    assert {len(rounds) for rounds in found["rounds"].values()} == {2}
    assert 0.5 < found["busy_share"] <= 1
    assert found["peak_rss_gb"] > 0.1
    error = found["bfloat16_error"]
    assert 0 < error["depth"] < 0.02
    assert 0 < error["same_clouds"]["relative_l2"] < 0.03
    assert error["same_clouds"]["least_cosine"] > 0.999
    assert any("busy" in line for line in table.lines())


def test_a_recipe_of_sensors_or_clips_that_are_too_long_are_refused_in_a_sentence() -> None:
    with pytest.raises(RequestError, match=r"geometry\.source=vggt"):
        bench_extract(extract_recipe("rgbd_tiny"), device="cpu", clips=1, frames=2, rounds=1)
    with pytest.raises(RequestError, match="give fewer"):
        bench_extract(extract_recipe("tiny"), device="cpu", clips=1, frames=5000, rounds=1)
