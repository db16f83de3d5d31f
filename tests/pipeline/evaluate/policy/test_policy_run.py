"""Runs of `cla train vla` in closed and in open loop, through the real frozen models."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged_run import moving_store, tiny_run
from trained_policy import demonstrations, trained_policy
from typer.testing import CliRunner

from data_specs.arrays import Array
from pipeline.cli import app
from pipeline.config import RequestError
from pipeline.evaluate.policy.acting import RunPolicy, policy_batch
from pipeline.evaluate.policy.environment import EnvironmentOptions, environment_spec
from pipeline.evaluate.policy.execution import Execution
from pipeline.evaluate.policy.hands import LocalHands, ProcessHands
from pipeline.evaluate.policy.heldout import held_out_clips, open_loop
from pipeline.evaluate.policy.judge import JudgeRequest, judge
from pipeline.evaluate.policy.live import LiveEyes, saved_moment
from pipeline.evaluate.policy.loading import LoadedPolicy
from pipeline.evaluate.policy.rollout import roll_out
from pipeline.evaluate.policy.slots import SlotsSetup
from pipeline.evaluate.policy.tabletop import TABLETOP
from pipeline.evaluate.policy.trials import plan_trials
from pipeline.store import open_store
from pipeline.train.policy_stores import PolicyStores


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return demonstrations(tmp_path_factory.mktemp("policy") / "store")


@pytest.fixture(scope="module")
def run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_policy(tmp_path_factory.mktemp("policy") / "run", store)


@pytest.fixture(scope="module")
def act_run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_policy(tmp_path_factory.mktemp("policy") / "act", store, "tabletop_act")


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["eval", "policy", "--device", "cpu", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_run_acts_in_the_tabletop_world(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = invoke(
        "--run", run, "--episodes", 1, "--tasks", "reach,pick", "--max-steps", 7, "--execute-steps", 4,
        "--workers", 0, "--html", page, "--film-episodes", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert set(found["success"]) == {"reach", "pick"}
    assert found["policy"]["recipe"] == "tabletop_vla_3d"
    assert found["policy"]["step"] == 2
    assert (found["settings"]["execute"], found["settings"]["execute_steps"]) == ("chunk", 4)
    assert any("RANDOM weights of text" in warning for warning in found["warnings"])
    assert {"simulate", "encode", "policy"} <= set(found["seconds_of"])
    assert page.read_text().count("<video") == 2


def test_actions_do_not_depend_on_the_number_of_processes(run: Path) -> None:
    class Recording(RunPolicy):
        chunks: list[Array]

        def act(self, looks: Any) -> Array:
            self.chunks = [*getattr(self, "chunks", []), super().act(looks)]
            return self.chunks[-1]

    loaded = LoadedPolicy.open(run, device="cpu")
    sight = loaded.sight(TABLETOP)
    options = EnvironmentOptions(views=sight.cameras, render_size=sight.size, max_steps=8)
    setup = SlotsSetup(environment="tabletop", options=options, eyes=LiveEyes.of(loaded, sight))
    found = []
    for hands in (LocalHands(setup), ProcessHands(setup, 2)):
        policy = Recording(loaded, 0)
        with closing(hands):
            roll_out(
                plan_trials(("reach", "push"), 2, seed=0, films=0), hands, policy,
                execution=Execution.choose("chunk", 4, loaded.horizon), slots=3,
            )  # fmt: skip
        found.append(policy.chunks)
    assert [len(chunk) for chunk in found[0]] == [3, 3, 1, 1]
    for local, apart in zip(*found, strict=True):
        np.testing.assert_array_equal(local, apart)


def test_what_a_policy_does_live_is_what_it_does_on_its_store(run: Path, store: str) -> None:
    """The batch that the loop makes of moments seen live gives the actions that the store's batch gives."""

    from pipeline.evaluate.policy.tabletop import TabletopEnvironment
    from pipeline.sim.episode import demonstrate
    from pipeline.sim.tasks import find_tasks
    from pipeline.train.policy_data import PolicyReader

    loaded, stores = LoadedPolicy.open(run, device="cpu"), PolicyStores.open([store])
    sight = loaded.sight(TABLETOP)
    eyes = LiveEyes.of(loaded, sight)()
    environment = TabletopEnvironment(EnvironmentOptions(views=sight.cameras, render_size=sight.size))
    moments = []
    for index in range(2):
        episode = demonstrate(3, index, find_tasks("reach,push"))
        assert stores.keys[index] == episode.key
        moments.append(saved_moment(eyes(environment.start(episode.scene), episode.key)))  # type: ignore[arg-type]
    with torch.inference_mode():
        live = loaded.model.act(policy_batch(moments))
        stored = loaded.model.act(PolicyReader(stores, loaded.columns, horizon=0)[stores.start[:2]])
    torch.testing.assert_close(live, stored, rtol=0, atol=0)


def test_an_ensemble_asks_at_every_step(act_run: Path) -> None:
    found = judge(
        JudgeRequest(run=act_run, episodes=1, tasks="reach", max_steps=5, execute="ensemble", workers=0, device="cpu")
    )
    assert found.settings["execute"] == "ensemble"
    assert found.as_json()["policy"]["recipe"] == "tabletop_act"
    assert found.results[0].steps == 5 or found.results[0].success


def test_open_loop_measures_held_out_episodes(run: Path, store: str, tmp_path: Path) -> None:
    page = tmp_path / "open.html"
    code, out, err = invoke("--run", run, "--store", store, "--open-loop", "--html", page, "--json")
    assert code == 0, err
    found = json.loads(out)
    values = found["open_loop"]
    assert found["clips"] == 1 and found["frames"] >= 1
    assert values["dimensions"][-1] == "gripper" and values["horizon"] == 6
    assert len(values["absolute_error"]["x"]) == 6
    assert values["normalised_error"] > 0
    assert "By dimension" in page.read_text()
    assert open_loop(run, store, device="cpu").as_json() == found
    code, out, _ = invoke("--run", run, "--store", store, "--open-loop")
    assert code == 0 and "gripper" in out


def test_open_loop_is_on_nothing_that_was_trained_on(run: Path, store: str) -> None:
    loaded, stores = LoadedPolicy.open(run, device="cpu"), PolicyStores.open([store])
    held_out = held_out_clips(loaded, stores)
    trained = set(json.loads((run / "split.json").read_text())["train"])
    assert len(held_out) == 1
    assert not {stores.keys[clip] for clip in held_out} & trained
    assert len(trained) == len(stores) - 1


def test_what_cannot_be_judged_is_answered_with_a_sentence(run: Path, store: str, tmp_path: Path) -> None:
    laq_store = moving_store(tmp_path / "laq_store")
    laq = tiny_run(tmp_path / "laq", laq_store)
    for arguments, said in (
        (("--run", tmp_path / "none"), "There is nothing at"),
        (("--run", laq), "is of task laq, which does not act"),
        (("--run", run, "--env", "aloha"), "takes actions of 14 dimensions"),
        (("--run", run, "--env", "libero"), "has no depth sensor"),
        (("--run", run, "--checkpoint", "first"), "expected best or last"),
        (("--run", run, "--execute-steps", 7), "gives 6 actions at a time"),
        (("--run", run, "--open-loop"), "give --run, --store and --open-loop together"),
        (("--run", run, "--open-loop", "--store", tmp_path / "none"), "none"),
        (("--run", run, "--open-loop", "--store", laq_store), "lacks what the run at"),
    ):
        code, out, err = invoke(*arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert said in err, (said, err)


def test_a_run_without_an_extraction_recipe_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    del record["store"]["recipe"]
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(RequestError, match="does not say how its store was extracted"):
        LoadedPolicy.open(copy, device="cpu").sight(environment_spec("tabletop"))


def test_other_weights_than_the_runs_end_the_judgement(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    for model in record["store"]["models"]:
        model["sha256"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(record))
    code, _, err = invoke("--run", copy, "--episodes", 1, "--tasks", "reach", "--workers", 0)
    assert code == 2
    assert "give the same weights" in err


def test_a_store_of_another_robot_is_refused(run: Path, store: str, tmp_path: Path) -> None:
    """The same store, whose manifest says other dimensions."""
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sizes"]["A"] = 3
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_store(str(copy)).manifest.sizes["A"] == 3
    with pytest.raises(RequestError, match="actions of 3 dimensions"):
        open_loop(run, str(copy), device="cpu")
