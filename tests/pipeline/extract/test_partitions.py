"""Several extractions of one store: partitions that share it, partitions that are merged, and who is refused."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from video_factory import disc_video

from pipeline.cli import app
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.extract.merge import merge_stores
from pipeline.extract.partition import Partition, ShardPlan, plan_shards
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, ExtractSummary, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe
from pipeline.store import StoreRequestError, open_store
from pipeline.store.errors import ShardError
from pipeline.store.layout import SUMS, StoreLayout
from pipeline.store.lock import write_lock

CLIPS = 7
CHANGES = [
    "frames.max=2",
    "points.count=256",
    "points.min_points=100",
    "store.shard_mb=0.13",
    "vggt.weights=random:0",
    "concerto.weights=random:0",
]


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(CLIPS - 1):
        disc_video(root / f"{i}.mp4", seed=i)
    (root / "6.mp4").write_bytes(b"no video")
    return root


def _recipe(*changes: str) -> ExtractRecipe:
    return override(extract_recipe("tiny"), [*CHANGES, "max_bad_fraction=0.5", *changes])


def _extract(videos: Path, out: Path, partition: str = "", *changes: str, **more: Any) -> ExtractSummary:
    request: dict[str, Any] = {
        "dataset": "video", "root": videos, "out": str(out), "recipe": _recipe(*changes), "split": None, "options": {},
        "limit": None, "format": "zarr", "workers": 0, "partition": Partition.parse(partition) if partition else None,
    }  # fmt: skip
    return run_extract(ExtractRequest(**{**request, **more}), _Quiet())


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "reference"
    summary = _extract(videos, out)
    assert (summary.clips, len(summary.rejected)) == (CLIPS - 1, 1)
    assert summary.tally.shards >= 3
    return out


def _same_bytes(one: Path, two: Path) -> bool:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    return all(filecmp.cmp(one / f, two / f, shallow=False) for f in files)


def test_partitions_cover_every_shard_once_whatever_their_number() -> None:
    plans = [ShardPlan(name=f"{i:06d}", refs=()) for i in range(11)]
    for of in (1, 2, 3, 11, 20):
        parts = [Partition(number=i + 1, of=of).plans(plans) for i in range(of)]
        assert sorted(plan.name for part in parts for plan in part) == [plan.name for plan in plans]
    assert plan_shards([], 3) == []


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/3", "1/0", "-1/3", "1/3/4", ""])
def test_a_partition_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="expected i/n"):
        Partition.parse(text)


@pytest.mark.parametrize("of", [2, 3])
def test_partitions_write_one_store_and_the_last_one_finishes_it(
    videos: Path, reference: Path, tmp_path: Path, of: int
) -> None:
    summaries = [_extract(videos, tmp_path / "s", f"{i}/{of}") for i in range(of, 0, -1)]
    assert [summary.finished for summary in summaries] == [False] * (of - 1) + [True]
    assert summaries[-1].clips == CLIPS - 1
    assert _same_bytes(reference, tmp_path / "s")
    again = _extract(videos, tmp_path / "s", f"1/{of}")
    assert (again.tally.shards, again.finished) == (0, True)
    assert _same_bytes(reference, tmp_path / "s")


def test_an_unfinished_store_can_be_read_and_says_what_it_lacks(videos: Path, tmp_path: Path, reference: Path) -> None:
    summary = _extract(videos, tmp_path / "s", "1/2")
    assert summary.open_shards > 0
    assert any("cla merge" in line for line in summary.lines())
    assert len(open_store(str(tmp_path / "s"))) == summary.clips
    found = inspect_store(str(tmp_path / "s"), verify=True)
    assert {damage.shard for damage in found.damages} == {"index.parquet", "rejected.jsonl", "SHA256SUMS"}
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "s"), "--json"])
    assert result.exit_code == 1, result.output
    values = json.loads(result.stdout)
    assert (values["clips"], values["missing"]) == (summary.clips, CLIPS - summary.clips - values["rejected"])
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True
    _extract(videos, tmp_path / "s", "2/2")
    assert _same_bytes(reference, tmp_path / "s")


def test_separate_stores_are_merged_and_a_stopped_merge_goes_on(videos: Path, reference: Path, tmp_path: Path) -> None:
    parts = []
    for i in (1, 2, 3):
        parts.append(str(tmp_path / f"part{i}"))
        _extract(videos, Path(parts[-1]), f"{i}/3")
    merge_stores(parts[:2], str(tmp_path / "all"))
    with pytest.raises(RequestError, match="give --out"):
        merge_stores(parts, None)
    with pytest.raises(RequestError, match="one of the stores"):
        merge_stores(parts, parts[0])
    summary = merge_stores(parts, str(tmp_path / "all"))
    assert summary.missing == 0
    assert summary.digest == inspect_store(str(reference)).digest
    assert _same_bytes(reference, tmp_path / "all")


@pytest.mark.parametrize("how", ["merge", "resume"])
def test_a_store_from_before_there_were_checksums_gets_them(
    videos: Path, reference: Path, tmp_path: Path, how: str
) -> None:
    store = shutil.copytree(reference, tmp_path / "s")
    (store / SUMS).unlink()
    found = inspect_store(str(store), verify=True)
    assert [(damage.shard, "cla merge" in damage.problem) for damage in found.damages] == [(SUMS, True)]
    if how == "merge":
        result = CliRunner().invoke(app, ["merge", str(store)])
        assert result.exit_code == 0, result.output
    else:
        assert _extract(videos, store, mode="resume").tally.shards == 0
    assert inspect_store(str(store), verify=True).verified is True
    assert _same_bytes(reference, store)


def test_other_recipes_and_damaged_shards_are_not_merged(videos: Path, reference: Path, tmp_path: Path) -> None:
    _extract(videos, tmp_path / "one", "1/2")
    _extract(videos, tmp_path / "other", "2/2", "points.count=250")
    with pytest.raises(StoreRequestError, match=r"points\.count"):
        merge_stores([str(tmp_path / "one"), str(tmp_path / "other")], str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()
    data = sorted((tmp_path / "one/shards").glob("*.zip"))[0]
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(ShardError, match="SHA-256"):
        merge_stores([str(tmp_path / "one")], str(tmp_path / "all"))
    assert data.name not in {path.name for path in (tmp_path / "all/shards").glob("*")}


def test_a_partition_joins_its_own_extraction_only(videos: Path, tmp_path: Path) -> None:
    _extract(videos, tmp_path / "s", "1/2")
    with pytest.raises(StoreRequestError, match=r"points\.count"):
        _extract(videos, tmp_path / "s", "2/2", "points.count=250")
    for wrong in ({"mode": "overwrite"}, {"retry_rejected": True}):
        with pytest.raises(RequestError, match="partition"):
            _extract(videos, tmp_path / "s", "2/2", **wrong)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("x")
    with pytest.raises(StoreRequestError, match="is no store"):
        _extract(videos, tmp_path / "foreign", "1/2")


def test_parts_of_another_division_and_whole_runs_are_refused_while_one_writes(videos: Path, tmp_path: Path) -> None:
    with write_lock(str(tmp_path / "s"), "1-of-2"):
        with pytest.raises(StoreRequestError, match=r"part 1-of-2 .* would write 2-of-3"):
            _extract(videos, tmp_path / "s", "2/3")
        with pytest.raises(StoreRequestError, match="Another process writes"):
            _extract(videos, tmp_path / "s", "1/2")
        with pytest.raises(StoreRequestError, match="Another process writes"):
            _extract(videos, tmp_path / "s")
        with write_lock(str(tmp_path / "s"), "2-of-2"):
            pass


def test_leftovers_of_others_are_left_alone(videos: Path, tmp_path: Path, reference: Path) -> None:
    out = tmp_path / "s"
    _extract(videos, out, "1/2")
    layout = StoreLayout.open(str(out))
    mine, theirs = (layout.files.path(layout.data_name(name)) for name in ("000001", "000000"))
    stranger = Path(f"{theirs}.tmp-1234")
    stranger.write_bytes(b"half")
    Path(f"{mine}.tmp-1234").write_bytes(b"half")
    Path(mine).write_bytes(b"no sidecar yet")
    with write_lock(str(out), "1-of-2"):  # somebody else is at work still: nobody finishes the store
        summary = _extract(videos, out, "2/2")
    assert (summary.open_shards, summary.finished) == (0, False)
    assert stranger.exists()
    assert not Path(f"{mine}.tmp-1234").exists()
    merge_stores([str(out)], None)
    assert _same_bytes(reference, out)


@pytest.mark.slow
def test_three_processes_at_once_one_killed_give_the_same_store(videos: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    arguments = ["extract", "--dataset", "video", "--root", str(videos), "--recipe", "tiny", "--out", str(out)]
    arguments += ["--workers", "0", *CHANGES, "max_bad_fraction=0.5"]

    def start(partition: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline.cli", *arguments, "--partition", partition]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    running = [start(f"{i}/3") for i in (1, 2, 3)]
    try:
        limit = time.monotonic() + 200
        while not list(out.glob("shards/*.json")):
            assert time.monotonic() < limit
            time.sleep(0.02)
        running[0].send_signal(signal.SIGKILL)
        codes = [process.wait(timeout=250) for process in running]
        assert codes[1:] == [0, 0]
        running.append(start("1/3"))
        assert running[-1].wait(timeout=250) == 0
    finally:
        for process in running:
            process.kill()
            process.wait(timeout=30)
    merge_stores([str(out)], None)
    assert inspect_store(str(out), verify=True).verified is True
    assert _same_bytes(reference, out)
