"""Robot actions as a store keeps them beside those of its own frames."""

import numpy as np

from data_specs.arrays import Array
from data_specs.shards import EXTRA

ACTION_NAME = "action_sum"
"""Key of `ClipRecord.extra`: f4 [F,A], the sum of all control steps' actions before the frame."""

ACTION_COLUMN = EXTRA + ACTION_NAME
"""Column of a store. The difference of two frames is the action accumulated between them, at any sampling rate."""

CHUNK_NAME, CHUNK_PAD_NAME = "action_chunk", "action_chunk_is_pad"
"""Keys of `ClipRecord.extra`: f4 [F,H,A], the H control steps at the robot's full rate from each frame on, whatever
the frames' own rate; bool [F,H], true past the end of the episode, where the last action is repeated."""

CHUNK_COLUMN, CHUNK_PAD_COLUMN = EXTRA + CHUNK_NAME, EXTRA + CHUNK_PAD_NAME
"""Columns of a store."""

STATE_PATH_NAME, ACTION_PATH_NAME, STEP_NAME = "path_state", "path_action", "path_step"
"""Keys of `ClipRecord.extra` beside the chunks: the episode's K control steps whole, f4 [K,S] and f4 [K,A], and i8 [F],
the step at which each frame was seen. Not a row a frame: read them with `store[i].extra`."""


def accumulate(action: Array) -> Array:
    """The sum f4 [F,A] of the actions [F,A] before each moment: 0 first, the last action never counted.

    Summed in float64: action_sum[j] - action_sum[i] is what was done from moment i to moment j.
    """
    total = np.zeros(action.shape, dtype=np.float64)
    np.cumsum(action[:-1], axis=0, dtype=np.float64, out=total[1:])
    return total.astype(np.float32)
