"""`--engine ray`: the same store from actors, with one killed in the middle; clear errors without a cluster."""

import filecmp
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from video_factory import disc_video

from pipeline.config import RequestError, override
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe

CHANGES = [
    "frames.max=2", "points.count=256", "points.min_points=100", "store.shard_mb=0.13",
    "vggt.weights=random:0", "concerto.weights=random:0",
]  # fmt: skip


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def _request(root: Path, out: Path, **more: object) -> ExtractRequest:
    values = {
        "dataset": "video", "root": root, "split": None, "options": {}, "limit": None, "out": str(out),
        "format": "zarr", "recipe": override(extract_recipe("tiny"), CHANGES), "workers": 0, "device": "cpu",
    }  # fmt: skip
    return ExtractRequest(**{**values, **more})


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disc_video(tmp_path / "v/0.mp4", seed=0)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a))
    with pytest.raises(RequestError, match=r"concerto-laq\[ray\]"):
        run_extract(_request(tmp_path / "v", tmp_path / "s", engine="ray"), _Quiet())
    assert not (tmp_path / "s").exists()


def _actors() -> list[int]:
    """Processes of this user whose title is that of our actor, started by a cluster of ours."""
    found = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True, timeout=30).stdout
    lines = [line.split(None, 1) for line in found.splitlines()]
    return [int(pid) for pid, title in lines if title.startswith("ray::ShardActor") and _is_ours(int(pid))]


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_actors_write_the_same_store_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    for i in range(6):
        disc_video(tmp_path / f"v/{i}.mp4", seed=i)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_extract(_request(tmp_path / "v", tmp_path / "local"), _Quiet())
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.wait(0.02):
            if list((tmp_path / "ray/shards").glob("*.json")) and (found := _actors()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        summary = run_extract(_request(tmp_path / "v", tmp_path / "ray", engine="ray", actors=2), _Quiet())
    finally:
        stop.set()
        killer.join(30)
    assert len(killed) == 1
    assert (summary.clips, summary.tally.clips) == (6, 6)
    assert inspect_store(str(tmp_path / "ray"), verify=True).verified is True
    names = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file())
    assert all(filecmp.cmp(tmp_path / "local" / name, tmp_path / "ray" / name, shallow=False) for name in names)


def test_options_of_ray_alone_are_refused() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "extract", "--dataset", "video", "--out", "x", "--actors", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 2
    assert "--engine ray" in result.stderr
