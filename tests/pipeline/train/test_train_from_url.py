"""`cla train --store s3://…`, against a server on loopback: through errors, with damaged shards, for both tasks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from motion_arrays import with_motion
from policy_store_factory import SMALL as SMALL_POLICY
from policy_store_factory import demonstrations, policy_store
from s3_server import Faults, s3_bucket
from store_factory import small_record, small_store
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.store.layout import StoreLayout
from pipeline.train.checkpoint import RunFolder, load_state
from pipeline.train.run import Run

TINY = [
    "model.dim=16", "model.heads=2", "model.hidden=16", "model.decoder_layers=1", "model.codes=24",
    "model.code_dim=4", "pairs.offset=0.5", "train.steps=9", "train.batch=4", "train.warmup=8", "train.workers=0",
    "train.log_every=1", "train.validate_every=4", "codebook.init_samples=8", "codebook.replace_every=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of five frames, a shard each; one is of the store's own validation split."""
    path = tmp_path_factory.mktemp("stores") / "store"
    splits = ["val" if i == 5 else "train" for i in range(6)]
    records = [with_motion(small_record(f"k{i:02d}", frames=5, split=split), i) for i, split in enumerate(splits)]
    small_store(path, records=records, per_shard=1)
    return path


def upload(folder: Path, url: str) -> StoreLayout:
    """A copy of a store in a bucket."""
    layout = StoreLayout.create(url, StoreLayout.open(str(folder)).manifest)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            layout.files.write_bytes(str(path.relative_to(folder)), path.read_bytes())
    return layout


def weights(run: Path) -> dict[str, Any]:
    state = load_state(RunFolder(run).folder("last"))
    return {"step": state["step"], **Run.open(run).load_model(which="last").state_dict()}


def cla(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def bucket(
    server: tuple[str, Faults], here: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Faults, StoreLayout]]:
    """A store in a bucket."""
    with s3_bucket(*server, monkeypatch) as name:
        layout = upload(here, f"{name}/s")
        yield layout.url, server[1], layout


def test_loader_processes_read_a_bucket_through_errors(
    bucket: tuple[str, Faults, StoreLayout], here: Path, tmp_path: Path
) -> None:
    url, faults, layout = bucket
    faults.match, faults.errors = layout.data_name("000003"), 2
    train = ["train", "laq", "--recipe", "laq_tiny", *TINY, "train.workers=1", "data.buffer=6"]
    result = cla(*train, "--store", url, "--out", tmp_path / "far")
    assert result.exit_code == 0, result.output
    assert faults.done.count("errors") == 2
    near = cla(*train, "--store", here, "--out", tmp_path / "near", "data.order=shards", "train.workers=0")
    assert near.exit_code == 0, near.output
    first, second = weights(tmp_path / "far"), weights(tmp_path / "near")
    assert all(torch.equal(first[name], second[name]) for name in first if name != "step")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_arrives_damaged_again_and_again_is_a_sentence(
    bucket: tuple[str, Faults, StoreLayout], tmp_path: Path, workers: int
) -> None:
    url, _, layout = bucket
    data = bytearray(layout.files.read_bytes(layout.data_name("000002")))
    data[len(data) // 2] ^= 1
    layout.files.write_bytes(layout.data_name("000002"), bytes(data))
    train = ["train", "laq", "--recipe", "laq_tiny", *TINY, f"train.workers={workers}", "data.buffer=6"]
    result = cla(*train, "--store", url, "--out", tmp_path / "far")
    assert result.exit_code == 1, result.output
    assert "Shard 000002: arrives otherwise than it was committed" in result.stderr and "3 times" in result.stderr
    assert "Traceback" not in result.output
    skipped = cla(*train, "--store", url, "--out", tmp_path / "skip", "data.damaged=skip", "train.steps=2")
    assert skipped.exit_code == 0 and "without 1 damaged shards" in skipped.stderr


def test_policies_train_on_a_bucket(
    server: tuple[str, Faults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = policy_store(tmp_path / "s", demonstrations()).layout
    train = ["train", "vla", "--recipe", "vla_3d", *SMALL_POLICY, "data.buffer=6", "data.order=shards"]
    with s3_bucket(*server, monkeypatch) as name:
        far = upload(tmp_path / "s", f"{name}/s")
        for layout, out in ((far, "far"), (near, "near")):
            result = cla(*train, "--store", layout.url, "--out", tmp_path / out)
            assert result.exit_code == 0, result.output
    first, second = weights(tmp_path / "far"), weights(tmp_path / "near")
    assert all(torch.equal(first[name], second[name]) for name in first if name != "step")
