import numpy as np
import pytest

from pipeline.sim.episode import Episode, attempt_episode, demonstrate, episode_split
from pipeline.sim.mjcf import CONTROL_HZ, SNAPSHOT_HZ
from pipeline.sim.perturb import Perturber
from pipeline.sim.tasks import REACH_CLEARANCE, REACH_TOLERANCE, TASKS, find_tasks, succeeded


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
    one = attempt_episode(11, 1, 0, task)
    others = [attempt_episode(11, 1, attempt, task, perturb=1.0) for attempt in range(3)]
    assert one.success
    assert sum(episode.success for episode in others) >= 2
    other = others[0]
    assert one.scene == other.scene
    assert np.array_equal(one.action, one.executed)
    assert np.abs(other.executed - other.action)[:, :3].max() > 0.1
    assert not np.array_equal(one.state, other.state[: len(one.state)])


def _ways_off(episode: Episode) -> np.ndarray:
    """How far the hand is from where a reach is to end, metres [K+1]."""
    world = episode.world
    target = world.position(0) + np.array([0, 0, world.half_height(0) + REACH_CLEARANCE])
    return np.linalg.norm(episode.state[:, :3] - target, axis=1)


def test_a_reach_under_noise_stays_at_its_end_and_comes_back_to_it() -> None:
    (task,) = find_tasks("reach")
    astray, ways = [], []
    for index in range(8):
        off = _ways_off(attempt_episode(11, index, 0, task, perturb=1.0))
        stayed = off[int(np.argmax(off < 0.006)) :]
        assert len(stayed) > 2 * CONTROL_HZ
        astray.append(stayed.max())
        ways.append(stayed)
    assert np.median(np.concatenate(ways)) < REACH_TOLERANCE
    assert sum(far > REACH_TOLERANCE for far in astray) >= 4, astray
    quiet = _ways_off(attempt_episode(11, 0, 0, task))
    assert np.flatnonzero(quiet < 0.006)[0] > len(quiet) - CONTROL_HZ


def _noise(action: list[float], scale: float, steps: int = 4000) -> np.ndarray:
    """What is executed over what is wanted [steps,7]."""
    wanted, perturbed = np.array(action, dtype=np.float32), Perturber(scale, np.random.default_rng(3))
    return np.stack([perturbed(wanted) for _ in range(steps)]) - wanted


def test_jitter_vanishes_where_the_expert_stays_and_bursts_do_not() -> None:
    noise = _noise([0, 0, 0, 0, 0, 0, 1], 1.0, 20000)
    quiet = ~noise.any(1)
    assert 0.7 < quiet.mean() < 0.95
    assert not noise[:, [3, 4, 6]].any()
    reach = np.linalg.norm(noise[~quiet, :3], axis=1)
    assert (reach.min(), reach.max()) == pytest.approx((0.1, 0.5), abs=0.01)
    runs = np.diff(np.flatnonzero(np.diff(quiet.astype(int))))[::2]
    assert runs.min() == 2
    assert np.median(runs) in (4, 5)
    # the same way for a whole burst, and less often up and down
    pairs = np.flatnonzero(~quiet[1:] & ~quiet[:-1])
    way = noise[:, :3] / np.linalg.norm(noise[:, :3], axis=1, keepdims=True).clip(1e-9)
    assert np.mean(np.sum(way[pairs] * way[pairs + 1], axis=1) > 0.999) > 0.8
    up, along = (np.abs(way[~quiet][:, axes]).mean() for axes in ([2], [0, 1]))
    assert 0.6 < up / along < 0.85


def test_jitter_is_in_proportion_to_what_is_commanded_and_all_of_it_to_the_scale() -> None:
    noise = _noise([0.3, 0, 0, 0, 0, 0.2, -1], 0.5)
    middle = np.quantile(noise, [0.25, 0.75], axis=0)[1]
    assert middle[:3] == pytest.approx(0.5 * 0.25 * 0.3 * 0.674 * np.ones(3), rel=0.35)
    assert middle[5] == pytest.approx(0.5 * 0.25 * 0.2 * 0.674, rel=0.5)  # bursts turn it, too
    assert np.abs(noise[:, :3]).max() < 0.5 * (0.5 + 5 * 0.25 * 0.3)
    assert np.array_equal(_noise([0.3, 0, 0, 0, 0, 0.2, -1], 0.0), np.zeros((4000, 7)))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_with_noise_it_succeeds_two_times_in_three(task) -> None:
    done = sum(attempt_episode(12, index, 0, task, perturb=1.0).success for index in range(50))
    assert done >= 33, f"{task.name}: {done} of 50"


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
