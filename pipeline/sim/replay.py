"""What an episode's world went through, beyond what the episode keeps: for formats that record joints and commands."""

from dataclasses import dataclass

import numpy as np

from pipeline.sim.episode import Episode
from pipeline.sim.geometry import Floats
from pipeline.sim.mjcf import FINGER_TRAVEL


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """K control steps, at K + 1 moments.

    Attributes:
        flat: f8 [K+1, 1 + nq + nv], time, generalised coordinates and velocities: MuJoCo's flattened state.
        joints, speeds: f8 [K+1, 8], the hand's x, y, z (metres), yaw, pitch, roll (radians), left and right finger
            (metres, 0 closed), and their velocities.
        target: f8 [K, 7], what the recorded action of each step asks for: the pose x, y, z, yaw, pitch, roll that the
            hand is sent to, and the opening of the fingers from 0 (closed) to 1.
    """

    flat: Floats
    joints: Floats
    speeds: Floats
    target: Floats


def replay(episode: Episode) -> Replay:
    """Act the episode's executed actions again in its own world; the states are the same, bit for bit."""
    world = episode.world
    world.reset()
    moments, targets = [_moment(episode)], []
    for wanted, done in zip(episode.action[:-1], episode.executed[:-1], strict=True):
        command, width = world.aimed(wanted)
        targets.append(np.array([*command, width / FINGER_TRAVEL]))
        world.step(done)
        moments.append(_moment(episode))
    flat, joints, speeds = (np.stack(values) for values in zip(*moments, strict=True))
    return Replay(flat=flat, joints=joints, speeds=speeds, target=np.stack(targets))


def _moment(episode: Episode) -> tuple[Floats, Floats, Floats]:
    data = episode.world.data
    return np.array([data.time, *data.qpos, *data.qvel]), *episode.world.hand
