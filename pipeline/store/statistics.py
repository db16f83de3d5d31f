"""Statistics of robot data by dimension, over any clips of any stores."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_specs.actions import ACTION_PATH_NAME, STATE_PATH_NAME
from data_specs.arrays import Array
from data_specs.shards import EXTRA
from pipeline.store.loader import Store

_PATHS = {"state": EXTRA + STATE_PATH_NAME, "action": EXTRA + ACTION_PATH_NAME}


def robot_summary(clips: Iterable[tuple[Store, Array]], name: str) -> dict[str, Any]:
    """`count`, `mean`, `std`, `min`, `max`, `q01`, `q99` by dimension of the states or actions of some clips.

    Where a store has the robot's whole way, over every control step of it, else over the steps of the frames; padded
    actions do not count. In float64 and in the order of the clips, so that two runs give equal numbers.

    Args:
        clips: stores, each with the numbers of the clips that count.
        name: `state` or `action`.
    """
    parts = [_values(store, int(clip), name) for store, some in clips for clip in some]
    values = np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, 0))
    if not len(values):  # every step is padding
        return {"count": 0}
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    columns = {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
        "q01": low,
        "q99": high,
    }
    return {"count": len(values), **{name: column.tolist() for name, column in columns.items()}}


def _values(store: Store, clip: int, name: str) -> Array:
    reader, row = store.locate(clip)
    if _PATHS[name] in reader.arrays:
        return reader.clip_array(_PATHS[name], row)
    values = reader.clip_array(name, row)
    return values[~reader.clip_array("is_pad", row)] if name == "action" and "is_pad" in reader.arrays else values
