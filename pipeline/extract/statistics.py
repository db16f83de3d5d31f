"""Statistics of the robot data in a store, by dimension: what a policy normalises with."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_specs.actions import ACTION_PATH_NAME
from data_specs.shards import EXTRA
from pipeline.store import open_store
from pipeline.store.statistics import robot_summary

TRAIN = "train"


def robot_statistics(url: str) -> dict[str, Any]:
    """Mean, std, min, max, 1 % and 99 % quantile by dimension, of `state` and `action` where a store has them.

    Over the clips of the training split where the store has one, else over all clips; see `robot_summary`. Where the
    store has the robot's whole way, "steps" says "control".
    """
    store = open_store(url)
    training = np.flatnonzero(pc.equal(store.clips["split"], TRAIN).to_numpy(zero_copy_only=False))
    clips = training if len(training) else np.arange(len(store))
    result: dict[str, Any] = {"split": TRAIN if len(training) else "all", "clips": len(clips)}
    columns = store.columns()
    whole = EXTRA + ACTION_PATH_NAME in columns
    if whole:
        result["steps"] = "control"
    for name in ("state", "action"):
        if whole or name in columns:
            result[name] = robot_summary([(store, clips)], name)
    return result
