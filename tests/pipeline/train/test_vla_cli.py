import json
from pathlib import Path

import pytest
from policy_store_factory import SMALL, demonstrations, label_file, policy_store
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.recipes import VLA
from pipeline.store.loader import Store
from pipeline.train.run import Run


def cla(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return policy_store(tmp_path_factory.mktemp("stores") / "a", demonstrations(views=True))


def test_from_codes_to_a_policy(store: Store, tmp_path: Path) -> None:
    url, latent, out = store.layout.url, tmp_path / "latent", tmp_path / "run"
    codes = label_file(tmp_path / "codes.parquet", store)
    common = ["train", "vla", "--store", url, "--recipe", "vla_3d", "--json", *SMALL]
    first = cla(*common, "--out", latent, "--codes", codes, "objective=latent")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["task"] == "vla"
    assert '"event": "note"' in first.stderr and "6 of 24 training frames have no code" in first.stderr
    second = cla(*common, "--out", out, "--init-from", latent, "labels.max_clips=2")
    assert second.exit_code == 0, second.output
    assert "loaded: " in second.stderr and "new: " in second.stderr
    assert json.loads(second.stdout)["val"]["error"] > 0
    again = cla(*common, "--out", out)
    assert again.exit_code == 2 and "--resume" in again.stderr and "--overwrite" in again.stderr
    longer = cla("train", "vla", "--out", out, "--resume", "train.steps=5")
    assert longer.exit_code == 0, longer.output
    assert "5 steps, 20 samples" in longer.stdout and "action error" in longer.stdout
    assert Run.open(out).checkpoint("last").step == 5


def test_several_stores_with_weights(store: Store, tmp_path: Path) -> None:
    other = policy_store(tmp_path / "b", demonstrations(4), seed=2)
    arguments = ["train", "vla", "--store", store.layout.url, "--store", other.layout.url, "--out", tmp_path / "run"]
    arguments += ["--recipe", "vla_3d", *SMALL, "train.steps=1"]
    result = cla(*arguments, "--weight", "1", "--weight", "3")
    assert result.exit_code == 0, result.output
    assert Run.open(tmp_path / "run").config["data"]["weights"] == [1.0, 3.0]
    wrong = cla(*arguments[:-1], "--weight", "1", "--overwrite")
    assert wrong.exit_code == 2 and "give one above 0 for each" in wrong.stderr
    assert Run.open(tmp_path / "run").checkpoint("last").step == 1  # what was good is still there


def test_made_up_data_trains_without_a_store(tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["train.batch=2", "train.validate_every=2", *SMALL[:16], "train.precision=float32"]
    result = cla("train", "vla", "--example", "--recipe", "vla_3d", "--out", out, "train.steps=2", *given)
    assert result.exit_code == 0, result.output
    resumed = cla("train", "vla", "--resume", "--out", out, "train.steps=4")
    assert resumed.exit_code == 0 and "4 steps" in resumed.stdout


@pytest.mark.parametrize("recipe", VLA)
def test_print_config_is_the_recipe_as_json(recipe: str) -> None:
    values = json.loads(cla("train", "vla", "--recipe", recipe, "--print-config", "train.steps=7").stdout)
    assert (values["name"], values["train"]["steps"]) == (recipe, 7)


@pytest.mark.parametrize(
    ("recipe", "trained", "frozen", "named"),
    [
        ("vla_simple", 48e6, 23e6, ["all-MiniLM-L6-v2"]),
        ("vla_dinov2", 48e6, 150e6, ["facebook/dinov2-base", "CLIP-ViT-B-32"]),
        ("vla_full", 66e6, 1592e6, ["facebook/dinov2-base", "facebook/VGGT-1B", "Qwen/Qwen3-0.6B-Base"]),
        ("vla_3d", 55e6, 705e6, ["concerto_base", "Qwen/Qwen3-0.6B-Base"]),
        ("act", 52e6, 0, []),
    ],
)
def test_print_model_counts_trained_and_frozen_parts(
    recipe: str, trained: float, frozen: float, named: list[str]
) -> None:
    result = cla("train", "vla", "--recipe", recipe, "--print-model")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["part", "trained", "frozen", "note"]
    counts = [int(word.replace(",", "")) for word in lines[-2].split()[1:]]
    assert counts[0] == pytest.approx(trained, rel=0.02)
    assert counts[1:] == ([pytest.approx(frozen, rel=0.02)] if frozen else [])
    assert all(name in result.stdout for name in named)
    assert lines[-1].startswith(f"{recipe}: ")


def test_print_model_follows_the_store(store: Store) -> None:
    result = cla("train", "vla", "--recipe", "vla_3d", "--print-model", "--store", store.layout.url)
    assert result.exit_code == 0 and "frozen: random:0" in result.stdout and "?" in result.stdout
    assert result.stdout != cla("train", "vla", "--recipe", "vla_3d", "--print-model").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "vla_3dd"], "Did you mean 'vla_3d'"),
        (["model.dimm=1"], "Did you mean 'model.dim'"),
        (["objective=reward"], "model.objective"),
        (["model.horizon=7"], "extract with robot.chunk=7"),
        (["--recipe", "tabletop_vla_dinov2"], "extract with vision.towers=dinov2=random:0"),
        (["--recipe", "vla_full"], "vision/vggt: extract with vision.vggt=true"),
        (["model.heads=3"], "cannot be built"),
        (["objective=latent"], "made by cla label --run RUN"),
        (["--codes", "codes.parquet"], "--codes are for objective=latent"),
        (["--init-from", "nowhere"], "expected a run"),
        (["labels.fraction=0"], "labels.fraction=0"),
        (["data.balance=class"], "data.balance"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--recipe", "act"], "views"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_a_sentence_and_exits_2(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = [] if "--recipe" in arguments or "--resume" in arguments else ["--recipe", "vla_3d", *SMALL]
    given = ["backbone.weights=", "model.cameras=front"] if arguments == ["--recipe", "act"] else []
    result = cla("train", "vla", "--store", store.layout.url, "--out", "x", *recipe, *arguments, *given)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stdout == "" and "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_what_is_missing(tmp_path: Path) -> None:
    assert "Missing --store" in cla("train", "vla", "--out", tmp_path / "x").stderr
    assert "Missing --out" in cla("train", "vla", "--store", tmp_path).stderr
    assert "There is nothing at" in cla("train", "vla", "--store", tmp_path / "y", "--out", tmp_path / "x").stderr
