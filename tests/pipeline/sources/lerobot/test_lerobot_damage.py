"""What is wrong with a dataset is said, and good episodes are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_recordings import change_json, change_table, read_all
from pyarrow import parquet

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sim.lerobot_files import encode_video
from pipeline.sources import open_source


@pytest.mark.parametrize(
    ("version", "remedy"), [("v2.0", "convert_dataset_v20_to_v21"), ("v1.6", "convert_dataset_v1"), ("v4.0", "update")]
)
def test_versions_that_are_not_supported(root: Path, version: str, remedy: str) -> None:
    change_json(root / "meta/info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(ValueError, match=rf"version {version} .*only v2\.1 and v3\.0 are.*{remedy}"):
        open_source("lerobot", root)


def test_a_video_shorter_than_its_table(v21: Path, v30: Path) -> None:
    black = [np.zeros((32, 32, 3), np.uint8)] * 10
    encode_video(v21 / "videos/chunk-000/observation.images.agent/episode_000001.mp4", black, 20)
    reasons = read_all(open_source("lerobot", v21))
    assert list(reasons) == ["episode_000001"]
    assert "episode_000001.mp4 is shorter than its table: it ends at 0.500 s" in reasons["episode_000001"]

    path = v30 / "videos/observation.images.agent/chunk-000/file-000.mp4"
    lengths = [row["length"] for row in parquet.read_table(v30 / "meta/episodes").to_pylist()]
    encode_video(path, black[:1] * (lengths[0] + 5), 20)
    source = open_source("lerobot", v30)
    assert list(read_all(source)) == ["episode_000001", "episode_000002"]
    few = FrameSampling(fps=4, max=2, size=16)  # the first frames are there, the clip is bad all the same
    with pytest.raises(BadClip, match="shorter"):
        source.read(source.clips()[1], few)


def test_a_video_that_is_missing_or_cut(v21: Path) -> None:
    videos = v21 / "videos/chunk-000/observation.images.agent"
    (videos / "episode_000000.mp4").unlink()
    (videos / "episode_000002.mp4").write_bytes((videos / "episode_000002.mp4").read_bytes()[:-900])
    reasons = read_all(open_source("lerobot", v21))
    assert list(reasons) == ["episode_000000", "episode_000002"]
    assert "is missing" in reasons["episode_000000"]
    assert "truncated" in reasons["episode_000002"]


def test_numbers_that_are_none(v21: Path) -> None:
    path = v21 / "data/chunk-000/episode_000001.parquet"
    change_table(path, "action", lambda rows: [*rows[:4], [float("nan")] * 7, *rows[5:]])
    reasons = read_all(open_source("lerobot", v21))
    assert list(reasons) == ["episode_000001"]
    assert f"{path}: action of episode_000001 is nan at step 4, dimension 0 (7 such" in reasons["episode_000001"]


def test_rows_that_are_missing_or_out_of_order(v30: Path) -> None:
    path = v30 / "data/chunk-000/file-000.parquet"
    change_table(path, "frame_index", lambda rows: [rows[1], rows[0], *rows[2:]])
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, table.num_rows - 2), path)
    reasons = read_all(open_source("lerobot", v30))
    assert list(reasons) == ["episode_000000", "episode_000002"]
    assert "does not count 0, 1" in reasons["episode_000000"]
    assert "rows of the episode, meta lists" in reasons["episode_000002"]


def test_stamps_that_do_not_fit_the_rate(v21: Path) -> None:
    path = v21 / "data/chunk-000/episode_000002.parquet"
    change_table(path, "timestamp", lambda rows: [*rows[:5], *(row + 0.2 for row in rows[5:])])
    reasons = read_all(open_source("lerobot", v21))
    assert "row 5 of the episode is stamped 0.4500 s, expected 0.2500 s" in reasons["episode_000002"]


def test_tables_that_are_cut_missing_or_lack_a_column(v21: Path) -> None:
    tables = sorted((v21 / "data").rglob("*.parquet"))
    tables[0].write_bytes(tables[0].read_bytes()[:-100])
    tables[1].unlink()
    parquet.write_table(parquet.read_table(tables[2]).drop_columns(["action"]), tables[2])
    reasons = read_all(open_source("lerobot", v21))
    assert "cannot be read as Parquet" in reasons["episode_000000"]
    assert "is missing" in reasons["episode_000001"]
    assert "has no column 'action'" in reasons["episode_000002"]


def test_lists_of_episodes_that_are_damaged(v21: Path, v30: Path, tmp_path: Path) -> None:
    path = v21 / "meta/episodes.jsonl"
    good = path.read_text()
    path.write_text(good[:-20])
    with pytest.raises(ValueError, match=r"episodes\.jsonl, line 3, is not JSON"):
        open_source("lerobot", v21).clips()
    path.write_text(good.replace('"length"', '"longth"', 1))
    with pytest.raises(ValueError, match=r"line 1, does not fit LeRobot's format v2\.1 \(KeyError\('length'\)\)"):
        open_source("lerobot", v21).clips()
    path.write_text(good + good.splitlines()[0])
    with pytest.raises(ValueError, match="lists an episode twice"):
        open_source("lerobot", v21).clips()
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        open_source("lerobot", v21).clips()

    listed = next((v30 / "meta/episodes").rglob("*.parquet"))
    listed.write_bytes(listed.read_bytes()[:200])
    with pytest.raises(ValueError, match="list of episodes, cannot be read as Parquet"):
        open_source("lerobot", v30).clips()
    listed.unlink()
    with pytest.raises(ValueError, match="holds no Parquet file"):
        open_source("lerobot", v30).clips()
    with pytest.raises(ValueError, match="holds no LeRobot dataset"):
        open_source("lerobot", tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"features": None}, "does not fit"),
        ({"splits": {"train": "all"}}, "does not fit"),
        ({"features": {}}, "has no camera"),
    ],
)
def test_infos_that_are_wrong(root: Path, change: dict[str, Any], sentence: str) -> None:
    change_json(root / "meta/info.json", lambda info: info.update(change))
    with pytest.raises(ValueError, match=sentence):
        open_source("lerobot", root)


def test_paths_stay_inside(v21: Path) -> None:
    change_json(v21 / "meta/info.json", lambda info: info.update(data_path="../{episode_index}.parquet"))
    with pytest.raises(ValueError, match="lies outside of"):
        open_source("lerobot", v21).clips()
