"""What the robot does from each frame on: chunks of actions at its own rate, whatever the frames' rate.

Shape legend: F frames, K control steps of the episode, H horizon, S state and A action dimensions.
"""

from collections.abc import Mapping

import numpy as np

from data_specs.actions import ACTION_PATH_NAME, CHUNK_NAME, CHUNK_PAD_NAME, STATE_PATH_NAME, STEP_NAME
from data_specs.arrays import Array
from data_specs.records import BadClip, Clip, Trajectory


def chunk_actions(trajectory: Trajectory, horizon: int) -> tuple[Array, Array]:
    """The `horizon` actions from each frame's control step on.

    Returns:
        chunk f4 [F,H,A]: past the end of the episode its last action, again and again.
        is_pad bool [F,H]: true there.

    Raises:
        ValueError: an episode without a step, or a frame outside of it. A frame after the last step (K) is inside.
    """
    if horizon < 1:
        raise ValueError(f"a chunk of {horizon} steps makes no sense: expected 1 or more")
    steps, at = len(trajectory.action), np.asarray(trajectory.step, dtype=np.int64)
    if steps == 0:
        raise ValueError("the episode has no control steps, expected at least one")
    if at.size and (at.min() < 0 or at.max() > steps):
        raise ValueError(f"frames were seen at the control steps {at.min()} to {at.max()}, the episode has {steps}")
    wanted = at[:, None] + np.arange(horizon)
    return trajectory.action[np.minimum(wanted, steps - 1)].astype(np.float32), wanted >= steps


def pack_chunks(clip: Clip, horizon: int) -> dict[str, Array]:
    """The arrays of `data_specs.actions` that a horizon asks for; none for 0. BadClip where the clip has no steps."""
    if horizon == 0:
        return {}
    if clip.trajectory is None:
        raise BadClip(
            clip.key, f"has no control steps to take robot.chunk={horizon} from; for data without a robot robot.chunk=0"
        )
    try:
        chunk, is_pad = chunk_actions(clip.trajectory, horizon)
    except ValueError as error:
        raise BadClip(clip.key, str(error)) from None
    return {
        CHUNK_NAME: chunk,
        CHUNK_PAD_NAME: is_pad,
        STATE_PATH_NAME: clip.trajectory.state.astype(np.float32),
        ACTION_PATH_NAME: clip.trajectory.action.astype(np.float32),
        STEP_NAME: np.asarray(clip.trajectory.step, dtype=np.int64),
    }


def check_robot(clip: Clip, sizes: Mapping[str, int]) -> None:
    """BadClip when the robot data of a clip does not fit itself or the store, or is not finite.

    `sizes` are those of the manifest: S and A, where the dataset says them.
    """
    frames, way = len(clip), clip.trajectory
    if way is not None and (len(way.step) != frames or len(way.state) != len(way.action)):
        raise BadClip(
            clip.key,
            f"its episode has {len(way.state)} states, {len(way.action)} actions and {len(way.step)} frames of which "
            f"{frames} were read; expected a state and an action for each step and a step for each frame",
        )
    for symbol, name, arrays in (
        ("S", "state", (clip.state, None if way is None else way.state)),
        ("A", "action", (clip.action, None if way is None else way.action)),
    ):
        for array in arrays:
            if array is None:
                continue
            if array.ndim != 2 or (symbol in sizes and array.shape[1] != sizes[symbol]):
                raise BadClip(
                    clip.key,
                    f"its {name} has shape {list(array.shape)}, the store keeps {sizes.get(symbol, 'any number of')} "
                    "dimensions; put episodes of another robot into a store of their own",
                )
            if not np.isfinite(array).all():
                step = int(np.argmin(np.isfinite(array).all(1)))
                raise BadClip(clip.key, f"its {name} is not finite at step {step}; mend the recording or leave it out")
