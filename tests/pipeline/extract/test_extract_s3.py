"""The whole way into a bucket by the command line: recorded, extracted, killed, resumed, merged, verified."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from s3_server import Faults, s3_bucket
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.layout import StoreLayout

CLIPS = 5
PATIENCE_S = 240
TINY = ["--recipe", "tiny", "--workers", "0", "frames.max=2", "points.count=1024", "store.shard_mb=0.2"]


def cla(*arguments: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def digest(store: str | Path) -> str:
    """Of a store that is whole."""
    found = cla("inspect-shards", store, "--verify")
    assert found["verified"] is True and found["clips"] == CLIPS
    return str(found["digest"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bucket_is_extracted_to_killed_resumed_merged_and_verified(
    server: tuple[str, Faults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    films = tmp_path / "films"
    record = ["sim", "record", "--format", "rgbd", "--clips", str(CLIPS), "--seed", "3", "--fps", "1", "--out"]
    recorded = CliRunner().invoke(app, [*record, str(films)])
    assert recorded.exit_code == 0, recorded.output
    extract = ["extract", "--dataset", "tabletop", "--root", str(films), *TINY]
    cla(*extract, "--out", tmp_path / "local")
    expected = digest(tmp_path / "local")
    shards = StoreLayout.open(str(tmp_path / "local")).committed()
    assert len(shards) >= 4

    url, faults = server
    with s3_bucket(url, faults, monkeypatch) as bucket:
        killed, middle = f"{bucket}/killed", shards[2]
        faults.hold = f"shards/{middle}.json"  # its data is there, its commit is on the way
        run = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *extract, "--out", killed], env=os.environ)
        try:
            until = time.monotonic() + PATIENCE_S
            while "held" not in faults.done:
                assert run.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            run.send_signal(signal.SIGKILL)
            assert run.wait(60) == -signal.SIGKILL
        finally:
            run.kill()
        faults.hold = ""
        faults.released.set()
        layout = StoreLayout.open(killed)
        assert layout.committed() == shards[:2]
        assert layout.files.exists(layout.data_name(middle)), "what the killed run left"
        assert CliRunner().invoke(app, [*extract, "--out", killed]).exit_code == 2, "not without --resume"
        summary = cla(*extract, "--out", killed, "--resume")
        assert summary["clips"] == CLIPS
        assert digest(killed) == expected

        parts = [f"{bucket}/part{i}" for i in (1, 2)]
        for i, part in enumerate(parts, 1):
            cla(*extract, "--out", part, "--partition", f"{i}/2")
        merged = cla("merge", *parts, "--out", f"{bucket}/merged")
        assert (merged["clips"], merged["missing"], merged["digest"]) == (CLIPS, 0, expected)
        assert digest(f"{bucket}/merged") == expected

        # a copy on a disk, as refusals of training on a URL advise
        cla("merge", f"{bucket}/merged", "--out", tmp_path / "copy")
        assert digest(tmp_path / "copy") == expected
