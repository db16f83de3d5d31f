import json
from pathlib import Path

import numpy as np
import pytest

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from data_specs.shards import DatasetRecord, Manifest
from pipeline.extract.statistics import robot_statistics
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter


def _clip(key: str, split: str, seed: int) -> ClipRecord:
    return example_record(
        key, frames=4, points=64, channels=8, size=28, kept=64, state=3, action=2, split=split, seed=seed
    )


def _store(path: Path, clips: list[ClipRecord]) -> str:
    sizes = {"C": 8, "P": 64, "W": 28, "S": 3, "A": 2}
    layout = StoreLayout.create(str(path), Manifest(format="zarr", dataset=DatasetRecord(name="made-up"), sizes=sizes))
    writer = ShardWriter(layout, "000000")
    for clip in clips:
        writer.add(clip)
    writer.commit()
    layout.write_index()
    return str(path)


def test_statistics_are_of_the_unpadded_steps_of_the_training_clips(tmp_path: Path) -> None:
    train = [_clip("a", "train", 1), _clip("b", "train", 2)]
    result = robot_statistics(_store(tmp_path / "store", [*train, _clip("c", "val", 3)]))
    assert (result["split"], result["clips"]) == ("train", 2)
    state = np.concatenate([clip.state for clip in train])
    action = np.concatenate([clip.action[~clip.is_pad] for clip in train])
    assert result["state"]["count"] == len(state)
    assert result["action"]["count"] == len(action)
    for name, values in (("state", state), ("action", action)):
        assert result[name]["mean"] == pytest.approx(values.astype(np.float64).mean(0))
        assert result[name]["std"] == pytest.approx(values.astype(np.float64).std(0))
        assert result[name]["min"] == pytest.approx(values.min(0))
        assert result[name]["q99"] == pytest.approx(np.quantile(values.astype(np.float64), 0.99, axis=0))
    json.dumps(result, allow_nan=False)


def test_without_a_training_split_all_clips_count(tmp_path: Path) -> None:
    result = robot_statistics(_store(tmp_path / "store", [_clip("a", "val", 1), _clip("b", "", 2)]))
    assert (result["split"], result["clips"]) == ("all", 2)
