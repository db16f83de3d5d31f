import json

import pytest
from typer.testing import CliRunner

from pipeline.bench.s2d import bench_s2d
from pipeline.cli import app


def test_both_ways_compute_the_same_and_the_ratio_is_that_of_their_times() -> None:
    table = bench_s2d(tokens=(40, 20), points=200, frames=2, rounds=1, device="cpu")
    rows = table.as_json()["rows"]
    assert [row["N'"] for row in rows] == [40, 20]
    for row in rows:
        assert row["difference"] < 1e-5
        assert row["ratio"] == pytest.approx(row["200 keys ms/frame"] / row["distinct ms/frame"])
    assert json.loads(json.dumps(table.as_json()))["ratio"]["40"] == rows[0]["ratio"]


def test_more_tokens_than_points_is_a_wrong_request() -> None:
    result = CliRunner().invoke(app, ["bench", "s2d", "--tokens", "300", "--points", "200", "--device", "cpu"])
    assert result.exit_code == 2
    assert "expected numbers of distinct tokens between 1 and 200" in result.output
