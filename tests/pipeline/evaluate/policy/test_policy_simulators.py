"""The adapters of gym-aloha and hf-libero: their logic on stand-ins, and on the real ones where they are."""

import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulator_packages import write_gym_aloha, write_libero

from pipeline.config import FailedError, RequestError
from pipeline.evaluate.policy.aloha import ALOHA
from pipeline.evaluate.policy.environment import EnvironmentOptions, open_environment
from pipeline.evaluate.policy.judge import JudgeRequest, judge
from pipeline.evaluate.policy.libero import LIBERO, SETTLING_STEPS, axis_angle, read_initial_states

STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def forget(*names: str) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in names]:
        del sys.modules[name]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand-ins in front of anything that is installed; no configuration, and nobody to answer a question."""
    write_gym_aloha(tmp_path)
    write_libero(tmp_path)
    forget("gym_aloha", "libero")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "config"))
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    yield tmp_path
    forget("gym_aloha", "libero")


def test_aloha_renders_only_what_is_looked_at(packages: Path) -> None:
    environment = open_environment("aloha", EnvironmentOptions(views=("top", "vis"), max_steps=5))
    rendered = sys.modules["gym_aloha"].RENDERED
    seen = environment.reset(seed=1, index=0, task="transfer_cube")
    assert rendered == ["top", "front_close"]
    assert {name: view.rgb.shape for name, view in seen.views.items()} == {"top": (480, 640, 3), "vis": (480, 640, 3)}
    assert seen.instruction.startswith("Pick up the cube")
    action = np.linspace(-1, 0.4, 14, dtype=np.float32)
    step = environment.step(action, look=False)
    assert len(rendered) == 2
    assert (step.observation, step.success, step.done) == (None, False, False)
    seen = environment.observe()
    assert seen.state.dtype == np.float32
    np.testing.assert_allclose(seen.state, action)
    action[13] = 0.9
    step = environment.step(action)
    assert step.success and step.done
    environment.close()


def test_aloha_episodes_follow_from_seed_and_index(packages: Path) -> None:
    environment = open_environment("aloha", EnvironmentOptions())
    states = [environment.reset(seed=s, index=i, task="insertion").state for s, i in ((0, 0), (0, 1), (1, 0), (0, 0))]
    np.testing.assert_array_equal(states[0], states[3])
    assert len({state.tobytes() for state in states}) == 3
    assert ALOHA.cap("insertion") == 400


def test_libero_follows_the_protocol(packages: Path) -> None:
    environment = open_environment("libero", EnvironmentOptions(views=("agentview", "eye_in_hand")))
    log = sys.modules["libero.libero.envs"].LOG
    seen = environment.reset(seed=0, index=4, task="libero_spatial:2")
    assert [entry[0] for entry in log] == ["open", "seed", "init"] + ["step"] * SETTLING_STEPS
    assert log[0][1:] == (str(packages / "libero/libero/bddl_files/libero_spatial/task_2.bddl"), 128)
    assert log[2] == ("init", 204.0)  # state 4 modulo 3, of task 2
    assert {entry[1] for entry in log[3:]} == {STILL}
    assert seen.instruction == "do task 2"
    np.testing.assert_allclose(seen.state, [0, 0, 0, np.pi, 0, 0, 0.04, -0.04], atol=1e-6)
    picture = seen.views["agentview"].rgb
    assert picture[-1, -1].min() == 255 and picture[0, 0].max() == 0  # turned by 180 degrees
    log.clear()
    environment.step(np.array([0, 0, -3, 0, 0, 0, 1], dtype=np.float32), look=False)
    assert log == [("step", (0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))]  # the gripper's sign as it is: +1 closes
    environment.reset(seed=0, index=0, task="libero_spatial:2")
    assert "open" not in [entry[0] for entry in log]  # the same task: the same simulator
    environment.reset(seed=0, index=0, task="libero_spatial:3")
    assert [entry[0] for entry in log].count("close") == 1
    for _ in range(2):
        environment.step(np.array([0, 0, -1, 0, 0, 0, 1], dtype=np.float32), look=False)
    step = environment.step(np.array([0, 0, -1, 0, 0, 0, 1], dtype=np.float32))
    assert step.success and step.done
    environment.close()


def test_liberos_caps_and_groups_are_those_of_published_results() -> None:
    assert [LIBERO.cap(f"{suite}:0") for suite in LIBERO.groups] == [220, 280, 300, 520, 400]
    assert len(LIBERO.tasks) == 130
    assert LIBERO.check_tasks("libero_goal") == tuple(f"libero_goal:{n}" for n in range(10))
    assert LIBERO.check_tasks("libero_10:3,libero_90:89") == ("libero_10:3", "libero_90:89")
    with pytest.raises(RequestError, match=r"no task 'libero_gaol'.*Did you mean 'libero_goal'"):
        LIBERO.check_tasks("libero_gaol")


def test_random_actions_can_be_judged_in_libero(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = JudgeRequest(
        environment="libero", tasks="libero_spatial:0,libero_spatial:1", episodes=2, policy="random", workers=0,
        max_steps=20,
    )  # fmt: skip
    found = judge(request).as_json()
    assert set(found["success"]) == {"libero_spatial:0", "libero_spatial:1"}
    assert capsys.readouterr().out == ""


def test_initial_states_that_could_run_something_are_not_read(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "evil.pruned_init"
    torch.save({"states": os.system}, path)
    with pytest.raises(FailedError, match="is no array of numbers"):
        read_initial_states(path)
    torch.save(np.zeros(3), path)
    with pytest.raises(FailedError, match=r"shape \(3,\)"):
        read_initial_states(path)


def test_an_axis_angle_keeps_the_side_that_its_quaternion_is_on() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([half, 0, 0, half])), [np.pi / 2, 0, 0])
    np.testing.assert_allclose(axis_angle(np.array([-half, 0, 0, -half])), [-3 * np.pi / 2, 0, 0])
    np.testing.assert_array_equal(axis_angle(np.array([0, 0, 0, 1.0])), np.zeros(3))


@pytest.mark.parametrize(("name", "package"), [("aloha", "gym_aloha"), ("libero", "libero")])
def test_a_missing_extra_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(package)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RequestError, match=r"is not installed .*pip install 'concerto-laq\[sim\]'"):
        open_environment(name, EnvironmentOptions())


def test_only_the_tabletop_has_unseen_cameras() -> None:
    with pytest.raises(RequestError, match="neither --camera nor --distractors"):
        open_environment("aloha", EnvironmentOptions(camera="unseen"))
    with pytest.raises(RequestError, match="no scripted expert"):
        judge(JudgeRequest(environment="aloha", policy="expert"))


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'concerto-laq[sim]'")


def test_the_real_gym_aloha() -> None:
    needs("gym_aloha")
    environment = open_environment("aloha", EnvironmentOptions(views=("top",)))
    try:
        seen = environment.reset(seed=0, index=0, task="transfer_cube")
    except FailedError as error:
        pytest.skip(f"no OpenGL: {error}")
    assert seen.views["top"].rgb.std() > 10
    for _ in range(20):
        step = environment.step(seen.state, look=False)
    assert not step.success
    assert np.abs(environment.observe().state - seen.state).max() < 0.05  # it was sent to where it was
    other = environment.reset(seed=0, index=1, task="transfer_cube").views["top"].rgb
    assert (other != seen.views["top"].rgb).any()  # the cube lies elsewhere
    environment.close()


def test_the_real_libero() -> None:
    needs("libero")
    environment = open_environment("libero", EnvironmentOptions(views=("agentview",)))
    try:
        seen = environment.reset(seed=0, index=0, task="libero_object:0")
    except FailedError as error:
        pytest.skip(f"its assets or OpenGL are missing: {error}")
    assert "alphabet soup" in seen.instruction
    assert seen.views["agentview"].rgb.shape == (128, 128, 3)
    assert abs(np.linalg.norm(seen.state[3:6]) - np.pi) < 0.15  # the hand points down
    opened = seen.state[6] - seen.state[7]
    for _ in range(10):
        step = environment.step(np.array([0, 0, -0.5, 0, 0, 0, 1], dtype=np.float32), look=False)
    assert not step.success
    after = environment.observe().state
    assert after[2] < seen.state[2] - 0.03
    assert after[6] - after[7] < 0.5 * opened  # +1 closes
    environment.close()
