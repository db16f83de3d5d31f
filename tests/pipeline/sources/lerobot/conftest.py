"""Recordings to read, and copies of them to damage."""

import shutil
from pathlib import Path

import pytest
from lerobot_recordings import FORMATS, Recordings

from pipeline.sim.record import record


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    out = tmp_path_factory.mktemp("lerobot")
    for name in FORMATS:
        record(name, out / name, clips=3, seed=3, tasks="reach", size=32)
    return {name: out / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def root(recorded: Recordings, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded[request.param], tmp_path / request.param))


@pytest.fixture
def v21(recorded: Recordings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded["lerobot-v2.1"], tmp_path / "v21"))


@pytest.fixture
def v30(recorded: Recordings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded["lerobot"], tmp_path / "v30"))
