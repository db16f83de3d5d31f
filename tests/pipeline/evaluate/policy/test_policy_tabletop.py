import numpy as np
import pytest

from pipeline.config import RequestError
from pipeline.evaluate.policy.environment import (
    EnvironmentOptions,
    check_options,
    environment_spec,
    open_environment,
)
from pipeline.evaluate.policy.tabletop import TabletopEnvironment
from pipeline.sim.episode import demonstrate
from pipeline.sim.tasks import find_tasks
from pipeline.sim.unseen_camera import AZIMUTH


def opened(**options: object) -> TabletopEnvironment:
    environment = open_environment("tabletop", EnvironmentOptions(render_size=56, **options))  # type: ignore[arg-type]
    assert isinstance(environment, TabletopEnvironment)
    return environment


def test_an_observation_has_what_was_asked_for_and_no_more() -> None:
    environment = opened(views=("agent", "wrist"))
    seen = environment.reset(seed=1, index=0, task="push")
    assert list(seen.views) == ["agent", "wrist"]
    for view in seen.views.values():
        assert (view.rgb.shape, view.rgb.dtype) == ((56, 56, 3), np.uint8)
        assert view.depth is not None and view.depth.shape == (56, 56)
        assert view.intrinsic is not None and view.extrinsic is not None
    assert (seen.state.shape, seen.state.dtype) == ((8,), np.float32)
    assert "push" in seen.instruction or "slide" in seen.instruction
    step = environment.step(np.zeros(7, dtype=np.float32), look=False)
    assert (step.observation, step.success, step.done) == (None, False, False)
    step = environment.step(np.zeros(7, dtype=np.float32))
    assert step.observation is not None
    np.testing.assert_array_equal(step.observation.views["wrist"].rgb, environment.observe().views["wrist"].rgb)
    assert opened().reset(seed=1, index=0, task="push").views == {}


def test_an_episode_depends_on_seed_index_and_task_only() -> None:
    one, other = opened(views=("agent",)), opened(views=("agent",))
    other.reset(seed=3, index=7, task="pick")
    for environment in (one, other):
        environment.reset(seed=3, index=2, task="reach")
        environment.step(np.full(7, 0.3, dtype=np.float32))
    np.testing.assert_array_equal(one.observe().state, other.observe().state)
    np.testing.assert_array_equal(one.picture(), other.picture())
    different = other.reset(seed=3, index=3, task="reach").state
    assert not np.array_equal(different, one.reset(seed=3, index=2, task="reach").state)


def test_no_recorded_scene_is_judged_in() -> None:
    environment = opened()
    recorded = {demonstrate(4, i, find_tasks("reach")).scene.hand_position for i in range(3)}
    for index in range(3):
        environment.reset(seed=4, index=index, task="reach")
        assert environment.world.scene.hand_position not in recorded


def test_the_expert_does_every_task_and_success_ends_an_episode() -> None:
    environment = opened()
    for task in environment.spec.tasks:
        environment.reset(seed=0, index=1, task=task)
        steps = [environment.step(action, look=False) for action in environment.expert()]
        first = next(k for k, step in enumerate(steps) if step.success)
        assert steps[first].done
        assert not any(step.done for step in steps[:first])


def test_an_episode_ends_at_the_cap() -> None:
    environment = opened(max_steps=3)
    environment.reset(seed=0, index=0, task="pick")
    still = np.zeros(7, dtype=np.float32)
    assert [environment.step(still, look=False).done for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("camera", "distractors"), [("unseen", False), ("moving", False), ("seen", True)])
def test_how_an_episode_is_seen_changes_nothing_in_it(camera: str, distractors: bool) -> None:
    plain = opened(views=("agent",))
    other = opened(views=("agent",), camera=camera, distractors=distractors)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7)).astype(np.float32)
    seen = []
    for environment in (plain, other):
        environment.reset(seed=2, index=5, task="pick")
        for action in actions:
            environment.step(action, look=False)
        seen.append(environment.observe())
    assert seen[0].instruction == seen[1].instruction
    np.testing.assert_array_equal(seen[0].state, seen[1].state)
    assert (seen[0].views["agent"].rgb != seen[1].views["agent"].rgb).any()


def test_an_unseen_camera_stands_where_no_recorded_one_does() -> None:
    seen, unseen = opened(views=("agent",)), opened(views=("agent",), camera="unseen")
    for index in range(6):
        angles = []
        for environment in (seen, unseen):
            extrinsic = environment.reset(seed=9, index=index, task="reach").views["agent"].extrinsic
            assert extrinsic is not None
            x, y, _ = -extrinsic[:, :3].T @ extrinsic[:, 3]
            angles.append(abs(np.arctan2(y, x)))
        assert angles[0] < 0.23
        assert AZIMUTH[0] - 1e-4 < angles[1] < AZIMUTH[1] + 1e-4


def test_unknown_names_are_answered_with_what_there_is() -> None:
    with pytest.raises(RequestError, match=r"no environment 'tabeltop'.*Did you mean 'tabletop'"):
        environment_spec("tabeltop")
    spec = environment_spec("tabletop")
    with pytest.raises(RequestError, match=r"no task 'pik'.*Did you mean 'pick'"):
        spec.check_tasks("reach,pik")
    with pytest.raises(RequestError, match="each task once"):
        spec.check_tasks("reach,reach")
    assert spec.check_tasks("") == ("reach", "push", "pick")
    assert spec.check_tasks("all") == spec.tasks
    with pytest.raises(RequestError, match=r"--camera unsen is unknown.*Did you mean 'unseen'"):
        check_options(spec, EnvironmentOptions(camera="unsen"))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no camera 'front'; it has agent, wrist"):
        check_options(spec, EnvironmentOptions(views=("front",)))
