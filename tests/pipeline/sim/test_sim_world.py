import numpy as np
import pytest

from pipeline.sim.layout import sample_scene
from pipeline.sim.tasks import TASKS, find_tasks, succeeded
from pipeline.sim.world import POSITION_SCALE, ROTATION_SCALE, World


def make_world(seed: int = 0, task: str = "reach") -> World:
    return World(sample_scene(find_tasks(task)[0], np.random.default_rng(seed)))


def act(world: World, steps: int, **parts: float) -> None:
    """`steps` times the action with the named components."""
    action = np.zeros(7, dtype=np.float32)
    action[6] = -1
    for name, value in parts.items():
        action[("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper").index(name)] = value
    for _ in range(steps):
        world.step(action)


@pytest.mark.parametrize(("axis", "name"), list(enumerate(["dx", "dy", "dz"])))
def test_a_delta_of_one_is_five_centimetres(axis: int, name: str) -> None:
    world = make_world()
    before = world.state()
    act(world, 1, **{name: 1.0})
    act(world, 20)
    moved = world.state()[:3] - before[:3]
    expected = np.zeros(3)
    expected[axis] = POSITION_SCALE
    np.testing.assert_allclose(moved, expected, atol=1e-3)


@pytest.mark.parametrize(("axis", "name"), list(enumerate(["droll", "dpitch", "dyaw"])))
def test_a_rotation_is_about_a_world_axis(axis: int, name: str) -> None:
    world = make_world()
    act(world, 1, dyaw=float(-world.state()[5] / ROTATION_SCALE))
    act(world, 20)
    before = world.state()[3:6]
    np.testing.assert_allclose(before, 0, atol=5e-3)
    act(world, 1, **{name: 1.0})
    act(world, 20)
    expected = np.zeros(3)
    expected[axis] = ROTATION_SCALE
    np.testing.assert_allclose(world.state()[3:6], expected, atol=1e-2)


def test_plus_one_closes_the_gripper_and_minus_one_opens_it() -> None:
    world = make_world()
    np.testing.assert_allclose(world.state()[6:], [0.04, -0.04], atol=1e-3)
    act(world, 20, gripper=1.0)
    np.testing.assert_allclose(world.state()[6:], 0.0, atol=1e-3)
    act(world, 20, gripper=-1.0)
    np.testing.assert_allclose(world.state()[6:], [0.04, -0.04], atol=1e-3)


def test_the_hand_stays_in_its_box() -> None:
    world = make_world()
    act(world, 40, dx=1.0, dz=1.0)
    assert world.state()[0] < 0.275
    assert world.state()[2] < 0.365


def test_things_rest_where_the_scene_puts_them() -> None:
    for seed, task in enumerate(TASKS):
        world = World(sample_scene(task, np.random.default_rng(seed)))
        before = [world.position(i) for i in range(len(world.scene.things))]
        act(world, 20)
        for i, thing in enumerate(world.scene.things):
            np.testing.assert_allclose(world.position(i), before[i], atol=1e-3)
            if thing.movable:
                assert world.touches_table(i)
                assert abs(world.position(i)[2] - thing.size[2]) < 1e-3


def test_equal_actions_give_equal_bytes_and_reset_goes_back() -> None:
    one, other = make_world(3, "push"), make_world(3, "push")
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (15, 7))
    first = np.concatenate([one.step(a) for a in actions])
    second = np.concatenate([other.step(a) for a in actions])
    assert first.tobytes() == second.tobytes()
    assert first.shape[0] == 3 * len(actions)  # 60 Hz
    one.reset()
    again = np.concatenate([one.step(a) for a in actions])
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_a_bad_action_is_refused(action: np.ndarray) -> None:
    with pytest.raises(ValueError, match="7 finite numbers"):
        make_world().step(action)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_task_is_done_at_the_start(task) -> None:
    for seed in range(5):
        assert not succeeded(World(sample_scene(task, np.random.default_rng(seed))))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_scenes_name_their_things_unambiguously(task) -> None:
    for seed in range(60):
        scene = sample_scene(task, np.random.default_rng(seed))
        names = [thing.name for thing in scene.things]
        assert len(set(names)) == len(names)
        assert scene.things[0].shape in task.movers
        assert names[0] in scene.instruction
        if task.goals:
            assert scene.things[1].shape in task.goals
            assert names[1] in scene.instruction
        assert scene == sample_scene(task, np.random.default_rng(seed))


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match="Did you mean 'stack'"):
        find_tasks("stak")
    assert [task.name for task in find_tasks("pick, push")] == ["pick", "push"]
