import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from motion_arrays import with_motion
from store_factory import small_manifest, small_record, small_store
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.recipes import LAQ
from pipeline.train.metrics import read_metrics
from pipeline.train.run import Run

ROOT = Path(__file__).parents[3]
TINY = ["model.dim=16", "model.heads=2", "model.hidden=16", "model.codes=16", "model.code_dim=4"]
TINY += [
    "pairs.offset=0.5",
    "train.batch=4",
    "train.workers=0",
    "train.log_every=1",
    "train.validate_every=2",
    "train.steps=4",
]


def cla(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    small_store(path, records=[with_motion(small_record(f"k{i}", frames=5), i) for i in range(6)])
    return path


def test_train_writes_a_run_and_prints_how_it_ended(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = cla("train", "laq", "--store", store, "--out", out, "--recipe", "laq_tiny", "--json", *TINY)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)  # one JSON object and nothing else
    assert (summary["steps"], summary["samples"], summary["recipe"]) == (4, 16, "laq_tiny")
    assert summary["best_val_loss"] > 0 and {"codes_used", "perplexity"} <= set(summary["train"])
    assert '"event": "progress"' in result.stderr
    again = cla("train", "laq", "--store", store, "--out", out, "--recipe", "laq_tiny", *TINY)
    assert again.exit_code == 2 and "--resume" in again.stderr and "--overwrite" in again.stderr
    # the run knows its recipe and its store
    longer = cla("train", "laq", "--out", out, "--resume", "train.steps=6")
    assert longer.exit_code == 0, longer.output
    assert "6 steps, 24 samples" in longer.stdout and "codes used" in longer.stdout
    assert Run.open(out).checkpoint("last").step == 6


def test_print_model_has_the_table_of_the_description() -> None:
    lines = cla("train", "laq", "--print-model").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["part", "S2D", "projection", "spatial encoder", "NSVQ", "total"]
    total = int(lines[-1].split()[1].replace(",", ""))
    assert abs(total - 42e6) < 1e6 and "42.0M" in lines[-1]


def test_print_model_follows_the_store(store: Path) -> None:
    wide, narrow = cla("train", "laq", "--print-model"), cla("train", "laq", "--print-model", "--store", store)
    assert wide.stdout != narrow.stdout and narrow.exit_code == 0


@pytest.mark.parametrize("recipe", LAQ)
def test_print_config_is_the_recipe_as_json(recipe: str) -> None:
    result = cla("train", "laq", "--recipe", recipe, "--print-config", "model.codes=128", "pairs.offset=0.25")
    values = json.loads(result.stdout)
    assert (values["name"], values["model"]["codes"], values["pairs"]["offset"]) == (recipe, 128, 0.25)


def test_the_full_recipe_has_the_numbers_of_the_issue() -> None:
    values = json.loads(cla("train", "laq", "--print-config").stdout)
    train = values["train"]
    assert (values["name"], train["steps"], train["lr"], train["batch"]) == ("laq_full", 100_000, 1e-4, 64)
    assert (train["precision"], values["pairs"]["offset"], values["model"]["codes"]) == ("bfloat16", 2.5, 256)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "laq_tinny"], "Did you mean 'laq_tiny'"),
        (["train.lrr=1"], "Did you mean 'train.lr'"),
        (["model.quantizer=1"], "Unknown key 'model.quantizer'"),
        (["train.batch=0"], "train.batch=0"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "tpu"], "expected auto"),
        (
            ["pairs.offset=9"],
            "no pairs at pairs.offset=9: no two frames of a clip are 9 s apart: the longest of 6 clips",
        ),
        (["--resume", "--overwrite"], "give one of them"),
        (["--resume"], "expected a run"),
        (["train.wandb=project"], "pip install wandb"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_request_is_a_sentence_and_exits_2(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = [] if "--recipe" in arguments or "--resume" in arguments else ["--recipe", "laq_tiny", *TINY]
    result = cla("train", "laq", "--store", store, "--out", tmp_path / "x", *recipe, *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stdout == "" and "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    nothing = cla("train", "laq", "--store", tmp_path / "none", "--out", tmp_path / "x")
    assert nothing.exit_code == 2 and "There is nothing at" in nothing.stderr
    assert cla("train", "laq", "--out", tmp_path / "x").exit_code == 2
    assert "Missing --out" in cla("train", "laq", "--store", tmp_path).stderr
    small_store(tmp_path / "old", records=[small_record("a", frames=5)])
    manifest = tmp_path / "old" / "manifest.json"
    manifest.write_text(json.dumps({**small_manifest().model_dump(mode="json"), "schema_version": 9}))
    old = cla("train", "laq", "--store", tmp_path / "old", "--out", tmp_path / "x")
    assert old.exit_code == 2 and "schema version 9" in old.stderr
    assert not (tmp_path / "x").exists()


def test_sigterm_saves_a_checkpoint_and_exits_130(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*TINY[:-1], "train.workers=1", "train.steps=100000", "train.validate_every=100000"]
    arguments = ["train", "laq", "--store", str(store), "--out", str(out), "--recipe", "laq_tiny", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not read_metrics(out, "train") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"--resume" in errors and b"Traceback" not in errors
    step = Run.open(out).checkpoint("last").step
    assert step == len(read_metrics(out, "train")) > 0
    resumed = cla("train", "laq", "--out", out, "--resume", f"train.steps={step + 1}", "--json")
    assert json.loads(resumed.stdout)["steps"] == step + 1
