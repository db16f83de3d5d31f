import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pipeline.sim.env import TabletopEnv
from pipeline.sim.experts import expert


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
    with pytest.raises(RuntimeError, match="reset"):
        TabletopEnv().step(np.zeros(7, dtype=np.float32))
