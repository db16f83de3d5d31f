"""What is written in LeRobot's formats."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_recordings import EVERY, FORMATS, Recordings
from pyarrow import parquet

from data_specs.datasets import FrameSampling
from pipeline.sim import lerobot_v30
from pipeline.sim.episode import demonstrate
from pipeline.sim.lerobot_files import pooled_stats
from pipeline.sim.record import record
from pipeline.sim.tasks import find_tasks
from pipeline.sources import open_source


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
    perturb=st.sampled_from([0.0, 0.7]),
    fps=st.sampled_from([4.0, 7.0, None]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, perturb: float, fps: float | None
) -> None:
    out = tmp_path_factory.mktemp("lerobot") / "data"
    record(name, out, clips=2, seed=seed, tasks="reach", size=32, perturb=perturb)
    source = open_source("lerobot", out, options={"view": "wrist", "views": "agent,wrist"})
    assert (source.spec.state_dim, source.spec.action_dim, source.spec.splits) == (8, 7, ("train",))
    for index, ref in enumerate(source.clips()):
        clip = source.read(ref, FrameSampling(fps=fps, stride=3, size=32))
        episode = demonstrate(seed, index, find_tasks("reach"), perturb=perturb)
        assert (clip.key, clip.split, clip.text) == (f"episode_{index:06d}", "train", episode.scene.instruction)
        at = np.rint(clip.time * 20).astype(int)
        np.testing.assert_array_equal(clip.state, episode.state[at])
        np.testing.assert_array_equal(clip.action, episode.action[at])
        np.testing.assert_array_equal(clip.trajectory.state, episode.state[:-1])
        np.testing.assert_array_equal(clip.trajectory.action, episode.action[:-1])
        np.testing.assert_array_equal(clip.trajectory.step, at)
        assert clip.trajectory.hz == 20
        assert not clip.is_pad.any()
        np.testing.assert_allclose(clip.extra["action_sum"][-1], episode.action[: at[-1]].sum(axis=0), atol=1e-4)
        for view in ("agent", "wrist"):
            seen = [episode.picture(moment / 20, view, 32, 32).rgb.astype(int) for moment in at]
            assert np.abs(clip.views[view] - np.stack(seen)).mean() < 8  # lossy, colours most of all
        np.testing.assert_array_equal(clip.rgb, clip.views["wrist"])


def test_the_files_of_v30(recorded: Recordings) -> None:
    root = recorded["lerobot"]
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.agent/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]
    episodes = parquet.read_table(root / "meta/episodes").to_pylist()
    lengths = [row["length"] for row in episodes]
    ends = np.cumsum(lengths).tolist()
    assert [row["dataset_to_index"] for row in episodes] == ends
    key = "videos/observation.images.wrist"
    assert [row[f"{key}/from_timestamp"] for row in episodes] == [0.0, ends[0] / 20, ends[1] / 20]
    assert [row[f"{key}/to_timestamp"] for row in episodes] == [end / 20 for end in ends]
    table = parquet.read_table(root / "data/chunk-000/file-000.parquet")
    assert table["index"].to_pylist() == list(range(ends[-1]))
    assert table.schema.field("action").type == pa.list_(pa.float32(), 7)
    tasks = parquet.read_table(root / "meta/tasks.parquet").to_pylist()
    numbers = {row["__index_level_0__"]: row["task_index"] for row in tasks}
    assert [numbers[row["tasks"][0]] for row in episodes] == [0, 1, 2]
    with av.open(str(root / f"{key}/chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 20, ends[-1])
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 20, ends[-1])
    assert info["features"]["observation.images.agent"]["info"]["video.codec"] == "h264"
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.array(table["action"].to_pylist())
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["max"], actions.max(0))
    assert np.shape(stats["observation.images.agent"]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(episodes[0]["stats/action/min"], actions[: ends[0]].min(0))


def test_the_files_of_v21(recorded: Recordings) -> None:
    root = recorded["lerobot-v2.1"]
    names = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert names == {
        *(f"meta/{name}" for name in ("info.json", "episodes.jsonl", "episodes_stats.jsonl", "tasks.jsonl")),
        *(f"data/chunk-000/episode_{i:06d}.parquet" for i in range(3)),
        *(f"videos/chunk-000/observation.images.{v}/episode_{i:06d}.mp4" for v in ("agent", "wrist") for i in range(3)),
    }
    episodes = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    stats = [json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert [row["episode_index"] for row in episodes] == [row["episode_index"] for row in stats] == [0, 1, 2]
    assert stats[1]["stats"]["action"]["count"] == [episodes[1]["length"]]
    assert json.loads((root / "meta/info.json").read_text())["codebase_version"] == "v2.1"


def test_both_versions_read_alike(recorded: Recordings) -> None:
    one, other = (open_source("lerobot", recorded[name]) for name in FORMATS)
    for first, second in zip(one.clips(), other.clips(), strict=True):
        a, b = one.read(first, EVERY), other.read(second, EVERY)
        assert (a.key, a.text) == (b.key, b.text)
        np.testing.assert_array_equal(a.rgb, b.rgb)  # the joined video was not coded again
        np.testing.assert_array_equal(a.trajectory.action, b.trajectory.action)


def test_files_are_full_at_some_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recordings) -> None:
    monkeypatch.setattr(lerobot_v30, "DATA_MB", 0.005)
    monkeypatch.setattr(lerobot_v30, "VIDEO_MB", 0.02)
    record("lerobot", tmp_path / "data", clips=3, seed=3, tasks="reach", size=32)
    assert len(list((tmp_path / "data/data").rglob("*.parquet"))) > 1
    assert len(list((tmp_path / "data/videos/observation.images.agent").rglob("*.mp4"))) > 1
    split, whole = (open_source("lerobot", path) for path in (tmp_path / "data", recorded["lerobot"]))
    for one, other in zip(split.clips(), whole.clips(), strict=True):
        np.testing.assert_array_equal(split.read(one, EVERY).rgb, whole.read(other, EVERY).rgb)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_do_not_depend_on_the_processes(tmp_path: Path, recorded: Recordings, name: str) -> None:
    record(name, tmp_path / "data", clips=3, seed=3, tasks="reach", size=32, workers=2)

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert contents(tmp_path / "data") == contents(recorded[name])


def test_what_is_not_a_recording_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="no recorder wrote"):
        record("lerobot", tmp_path, clips=1, overwrite=True)
    with pytest.raises(ValueError, match="even number of pixels"):
        record("lerobot", tmp_path / "odd", clips=1, size=33)


def test_pooled_statistics_are_those_of_all_rows() -> None:
    from pipeline.sim.lerobot_files import array_stats

    rng = np.random.default_rng(0)
    parts = [rng.normal(k, 1 + k, (5 + 3 * k, 2)) for k in range(3)]
    pooled, whole = pooled_stats(map(array_stats, parts)), array_stats(np.concatenate(parts))
    assert pooled.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(pooled[name], value)
