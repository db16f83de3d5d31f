from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pipeline.sim.env import TabletopEnv
from pipeline.sim.experts import expert
from pipeline.sim.layout import Look, sample_scene, unseen_camera
from pipeline.sim.tasks import TASKS


@pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning")
def test_gymnasium_accepts_it() -> None:
    env = TabletopEnv(size=32, depth=True, render_mode="rgb_array")
    check_env(env)


def test_equal_seeds_give_equal_bytes() -> None:
    def roll(env: TabletopEnv) -> list[bytes]:
        observation, info = env.reset(seed=3)
        out = [info["instruction"].encode()]
        for action in np.random.default_rng(0).uniform(-1, 1, (4, 7)).astype(np.float32):
            observation, *_ = env.step(action)
            out += [observation[name].tobytes() for name in sorted(observation)]
        return out

    env = TabletopEnv(size=32, depth=True)
    first = roll(env)
    env.reset()  # another episode between must not matter
    assert first == roll(env) == roll(TabletopEnv(size=32, depth=True))


def test_reset_without_a_seed_goes_on_to_another_scene() -> None:
    env = TabletopEnv(size=16)
    env.reset(seed=0)
    first = env.world.scene
    env.reset()
    assert env.world.scene != first


def test_the_expert_solves_an_episode() -> None:
    env = TabletopEnv("pick", views=("agent",), size=16)
    _, info = env.reset(seed=1)
    assert info["task"] == "pick"
    assert not info["success"]
    rewards = []
    for action in expert(env.world, np.random.default_rng(0)):
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(float(reward))
        if terminated or truncated:
            break
    assert terminated
    assert info["success"]
    assert sum(rewards) == 1.0


def test_an_episode_is_truncated() -> None:
    env = TabletopEnv("stack", views=(), size=16, max_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, dtype=np.float32))[3] for _ in range(3)]
    assert ends == [False, False, True]


def test_cameras_are_those_of_the_pictures() -> None:
    env = TabletopEnv(size=16, cameras=True)
    env.reset(seed=2)
    observation, *_ = env.step(np.ones(7, dtype=np.float32))
    for view in ("agent", "wrist"):
        np.testing.assert_array_equal(observation[f"{view}_intrinsic"], env.picture(view).intrinsic)
        np.testing.assert_array_equal(observation[f"{view}_extrinsic"], env.picture(view).extrinsic)


@pytest.mark.parametrize("change", [{"camera": "unseen"}, {"distractors": True}], ids=["camera", "distractors"])
def test_another_sight_of_the_same_world(change: dict[str, Any]) -> None:
    def roll(env: TabletopEnv) -> list[dict[str, Any]]:
        action = np.array([0.5, 0.2, -0.5, 0, 0, 0.1, 1], dtype=np.float32)
        first, info = env.reset(seed=4, options={"task": "pick"})
        return [{**first, "instruction": info["instruction"]}, *(env.step(action)[0] for _ in range(3))]

    seen, other = roll(TabletopEnv(size=32, depth=True)), roll(TabletopEnv(size=32, depth=True, **change))
    assert seen[0]["instruction"] == other[0]["instruction"]
    for one, two in zip(seen, other, strict=True):
        np.testing.assert_array_equal(one["state"], two["state"])
        assert not np.array_equal(one["agent"], two["agent"])


def test_unseen_cameras_stand_where_no_episode_has_one() -> None:
    def place(look: Look) -> tuple[float, float, float]:
        x, y, z = look.camera_position
        return abs(float(np.arctan2(y, x))), float(np.hypot(x, y)), z

    rng = np.random.default_rng(0)
    seen = [sample_scene(TASKS[0], rng).look for _ in range(200)]
    unseen = [unseen_camera(look, rng) for look in seen]
    for one, two in zip(zip(*map(place, seen), strict=True), zip(*map(place, unseen), strict=True), strict=True):
        assert not any(min(one) <= value <= max(one) for value in two)
        assert max(two) - min(two) > max(one) - min(one)
    assert {len({place(look) for look in unseen})} == {200}


def test_options_pick_the_task() -> None:
    env = TabletopEnv(views=(), size=16)
    for name in ("push", "place"):
        assert env.reset(seed=0, options={"task": name})[1]["task"] == name
    with pytest.raises(ValueError, match="Did you mean 'push'"):
        env.reset(options={"task": "pusj"})


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="render_mode"):
        TabletopEnv(render_mode="human")
    with pytest.raises(ValueError, match="Unknown view"):
        TabletopEnv(views=("top",))
    with pytest.raises(ValueError, match="Did you mean 'unseen'"):
        TabletopEnv(camera="unsen")
    with pytest.raises(RuntimeError, match="reset"):
        TabletopEnv().step(np.zeros(7, dtype=np.float32))
