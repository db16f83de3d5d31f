"""Statistics of the robot data in a store, by dimension: what a policy normalises with."""

from typing import Any

import numpy as np

from data_specs.actions import ACTION_PATH_NAME, STATE_PATH_NAME
from data_specs.arrays import Array
from data_specs.shards import EXTRA
from pipeline.store import open_store
from pipeline.store.loader import Store

TRAIN = "train"


def robot_statistics(url: str) -> dict[str, Any]:
    """Mean, std, min, max, 1 % and 99 % quantile by dimension, of `state` and `action` where a store has them.

    Over the clips of the training split where the store has one, else over all clips. Where the store has chunks of
    actions, over every control step of them ("steps" then says "control"), else over the steps of the frames; padded
    actions do not count. In float64 and in the order of the keys, so that two runs give equal numbers.
    """
    store = open_store(url)
    names = [name for name in ("state", "action") if name in store.columns()]
    training = [i for i in range(len(store)) if store.info(i).split == TRAIN]
    clips = training or list(range(len(store)))
    result: dict[str, Any] = {"split": TRAIN if training else "all", "clips": len(clips)}
    if EXTRA + ACTION_PATH_NAME in store.columns():
        result["steps"] = "control"
        for name, path in (("state", STATE_PATH_NAME), ("action", ACTION_PATH_NAME)):
            result[name] = _summary(np.concatenate([_path(store, i, path) for i in clips]).astype(np.float64))
        return result
    for name in names:
        result[name] = _summary(np.concatenate([_values(store, i, name) for i in clips]).astype(np.float64))
    return result


def _path(store: Store, clip: int, name: str) -> Array:
    reader, row = store.locate(clip)
    return reader.clip_array(EXTRA + name, row)


def _values(store: Store, clip: int, name: str) -> Array:
    record = store.batch(store.frames(clip), columns=(name, "is_pad") if name == "action" else (name,))
    values: Array = getattr(record, name).numpy()
    return values[~record.is_pad.numpy()] if name == "action" and record.is_pad is not None else values


def _summary(values: Array) -> dict[str, Any]:
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
