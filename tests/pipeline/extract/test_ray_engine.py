"""`--engine ray`: the same store from actors, with one killed in the middle; clear errors without a cluster."""

import filecmp
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from video_factory import disc_video

import pipeline.extract.runner
import pipeline.sources
from pipeline.config import RequestError, override
from pipeline.extract.finish import list_store
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe
from pipeline.store.layout import StoreLayout
from pipeline.store.verify import verify

TESTS = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six videos, and their store by the local engine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = tmp_path_factory.mktemp("ray")
    for i in range(6):
        disc_video(folder / f"v/{i}.mp4", seed=i)
    assert run_extract(_request(folder / "v", folder / "local"), _Quiet()).tally.shards == 6
    return folder / "v", folder / "local"


def _assert_same(one: Path, two: Path) -> None:
    first, second = (inspect_store(str(store), verify=True) for store in (one, two))
    assert first.verified is second.verified is True and first.digest == second.digest
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all(filecmp.cmp(one / name, two / name, shallow=False) for name in names)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("actors", [1, 2, 3])
def test_any_number_of_actors_writes_the_same_store(local: tuple[Path, Path], tmp_path: Path, actors: int) -> None:
    videos, store = local
    summary = run_extract(_request(videos, tmp_path / "ray", engine="ray", actors=actors), _Quiet())
    assert (summary.clips, summary.tally.clips) == (6, 6)
    _assert_same(store, tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("actors", [1, 2, 3])
def test_an_actor_that_is_killed_is_replaced(
    local: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actors: int
) -> None:
    """By SIGKILL, while it writes the fourth of six shards."""
    videos, store = local
    died = tmp_path / "died"
    monkeypatch.setenv("CLA_TEST_DIED", str(died))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setitem(pipeline.sources._SOURCES, "video", "dying_source:DyingVideos")
    summary = run_extract(_request(videos, tmp_path / "ray", engine="ray", actors=actors), _Quiet())
    assert int(died.read_text()) != os.getpid()
    assert (summary.clips, summary.tally.clips) == (6, 6)
    _assert_same(store, tmp_path / "ray")


class _Impatient(Reporter):
    """Ctrl-C, when two shards are written."""

    def update(self, tally: Tally, total: int) -> None:
        if tally.shards >= 2:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_no_actor_writes_after_an_interrupt(
    local: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards are under way then: the store that is left is the one that was listed, and can be gone on with."""
    videos, store = local

    def list_and_dawdle(*arguments: Any) -> int:
        cut = list_store(*arguments)
        time.sleep(5)
        return cut

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pipeline.extract.runner, "list_store", list_and_dawdle)
        run_extract(_request(videos, tmp_path / "ray", engine="ray"), _Impatient())
    left = StoreLayout.open(str(tmp_path / "ray"))
    assert 2 <= len(left.committed()) < 6
    assert verify(left) == []
    run_extract(_request(videos, tmp_path / "ray", engine="ray", mode="resume"), _Quiet())
    _assert_same(store, tmp_path / "ray")


def test_options_of_ray_alone_are_refused() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "extract", "--dataset", "video", "--out", "x", "--actors", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 2
    assert "--engine ray" in result.stderr
