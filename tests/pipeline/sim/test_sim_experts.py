import numpy as np
import pytest

from pipeline.sim.episode import attempt_episode, demonstrate, episode_split
from pipeline.sim.mjcf import CONTROL_HZ, SNAPSHOT_HZ
from pipeline.sim.tasks import TASKS, find_tasks, succeeded


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_expert_does_the_task(task) -> None:
    """Every one of four scenes; the slow test counts over many."""
    for index in range(4):
        episode = attempt_episode(11, index, 0, task)
        assert episode.success, (task.name, index)
        assert 0.8 < episode.seconds < 7
        assert np.abs(episode.action).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_expert_succeeds_nine_times_in_ten(task) -> None:
    done = sum(attempt_episode(12, index, 0, task).success for index in range(50))
    assert done >= 45, f"{task.name}: {done} of 50"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_expert_comes_back_from_noise(task) -> None:
    one, other = (attempt_episode(11, 1, 0, task, perturb=scale) for scale in (0.0, 1.0))
    assert one.success
    assert other.success
    assert one.scene == other.scene
    assert np.array_equal(one.action, one.executed)
    assert np.abs(other.executed - other.action)[:, :3].max() > 0.1
    assert not np.array_equal(one.state, other.state[: len(one.state)])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_with_noise_it_succeeds_four_times_in_five(task) -> None:
    done = sum(attempt_episode(12, index, 0, task, perturb=1.0).success for index in range(50))
    assert done >= 40, f"{task.name}: {done} of 50"


def test_an_episode_is_consistent() -> None:
    episode = demonstrate(1, 2)
    count = len(episode.time)
    assert episode.scene.task.name == "pick"
    assert episode.key == "s1-000002-pick"
    assert episode.state.shape == (count, 8)
    assert episode.action.shape == (count, 7)
    assert episode.is_pad.tolist() == [False] * (count - 1) + [True]
    assert not episode.action[-1, :6].any()
    assert len(episode.snapshots) == (count - 1) * SNAPSHOT_HZ // CONTROL_HZ + 1
    # The state is that of the snapshot: x, y, z of the hand are its first coordinates.
    for i in (0, count // 2, count - 1):
        np.testing.assert_allclose(episode.at(episode.time[i])[:3], episode.state[i, :3], atol=1e-6)
    assert episode.action[episode.action[:, 6] > 0].size  # the gripper closed
    assert succeeded(episode.world)


def test_an_episode_depends_on_seed_and_index_only() -> None:
    one = demonstrate(5, 0)
    demonstrate(5, 1)
    again, other = demonstrate(5, 0), demonstrate(6, 0)
    assert one.snapshots.tobytes() == again.snapshots.tobytes()
    assert one.action.tobytes() == again.action.tobytes()
    assert one.scene == again.scene != other.scene


def test_replaying_the_actions_gives_the_same_states() -> None:
    episode = demonstrate(2, 4, find_tasks("all"))
    episode.world.reset()
    states = [episode.world.state()]
    for action in episode.action[:-1]:
        episode.world.step(action)
        states.append(episode.world.state())
    assert np.stack(states).tobytes() == episode.state.tobytes()


def test_every_tenth_is_validation() -> None:
    assert [i for i in range(40) if episode_split(i) == "val"] == [9, 19, 29, 39]
