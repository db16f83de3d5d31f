import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sim import lerobot_v30
from pipeline.sim.episode import demonstrate
from pipeline.sim.lerobot_files import encode_video, pooled_stats
from pipeline.sim.record import record
from pipeline.sim.tasks import find_tasks
from pipeline.sources import open_source
from pipeline.sources.base import Source

EVERY = FrameSampling(fps=None, max=0, size=32)
FORMATS = ("lerobot", "lerobot-v2.1")
Recordings = dict[str, Path]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    out = tmp_path_factory.mktemp("lerobot")
    for name in FORMATS:
        record(name, out / name, clips=3, seed=3, tasks="reach", size=32)
    return {name: out / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def root(recorded: Recordings, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded[request.param], tmp_path / request.param))


@pytest.fixture
def v21(recorded: Recordings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded["lerobot-v2.1"], tmp_path / "v21"))


@pytest.fixture
def v30(recorded: Recordings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded["lerobot"], tmp_path / "v30"))


def read_all(source: Source) -> dict[str, str]:
    """The reason of every bad clip."""
    bad = {}
    for ref in source.clips():
        try:
            source.read(ref, EVERY)
        except BadClip as error:
            bad[error.key] = error.reason
    return bad


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_table(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = parquet.read_table(path)
    column = pa.array(change(table[name].to_pylist()), type=table[name].type)
    parquet.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)


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


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc"), ("libsvtav1", "av1")])
def test_codecs(v21: Path, codec: str, name: str) -> None:
    video = v21 / "videos/chunk-000/observation.images.agent/episode_000000.mp4"
    source = open_source("lerobot", v21)
    count = len(source.read(source.clips()[0], EVERY))
    encode_video(video, [np.full((64, 64, 3), 30 + 4 * i, np.uint8) for i in range(count)], 20, codec=codec)
    with av.open(str(video)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name
    clip = source.read(source.clips()[0], FrameSampling(fps=5, max=0, size=32))
    at = np.rint(clip.time * 20)
    np.testing.assert_allclose(clip.rgb.mean(axis=(1, 2, 3)), 30 + 4 * at, atol=3)


def images_in_the_table(root: Path, kind: str, damage: bool = False) -> list[np.ndarray]:
    """Move the pictures of episode 0's agent from the video into the table."""
    key = "observation.images.agent"
    change_json(root / "meta/info.json", lambda info: info["features"][key].update(dtype="image"))
    path = root / "data/chunk-000/episode_000000.parquet"
    table = parquet.read_table(path)
    rgbs = [np.full((20, 30, 3), 5 + 3 * i, np.uint8) for i in range(table.num_rows)]
    cells = []
    for rgb in rgbs:
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, kind)
        cells.append({"bytes": None if damage else stream.getvalue(), "path": None})
    picture = pa.array(cells, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    parquet.write_table(table.append_column(key, picture), path)
    return rgbs


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images(v21: Path, kind: str) -> None:
    rgbs = images_in_the_table(v21, kind)
    source = open_source("lerobot", v21, options={"view": "wrist", "views": "agent"})
    clip = source.read(source.clips()[0], FrameSampling(fps=5, max=0, size=16))
    assert clip.views["agent"].shape[1:] == (20, 30, 3)
    np.testing.assert_allclose(clip.views["agent"], np.stack([rgbs[i] for i in clip.trajectory.step]), atol=2)
    assert sorted(read_all(source)) == ["episode_000001", "episode_000002"]  # their tables have no pictures


def test_images_that_are_not_there(v21: Path) -> None:
    images_in_the_table(v21, "PNG", damage=True)
    reasons = read_all(open_source("lerobot", v21))
    assert "row 0, holds no picture" in reasons["episode_000000"]
    assert "has no column 'observation.images.agent'" in reasons["episode_000001"]


def test_cameras(root: Path) -> None:
    def change(info: dict[str, Any]) -> None:
        features = info["features"]
        features["observation.images.depth"] = {
            **features["observation.images.agent"],
            "info": {"video.is_depth_map": True},
        }
        features["observation.image"] = {"dtype": "image", "shape": [4, 4, 3], "names": None}

    change_json(root / "meta/info.json", change)
    with pytest.raises(ValueError, match=r"no camera 'front'; choose from agent, wrist, image\."):
        open_source("lerobot", root, options={"view": "front"})
    assert open_source("lerobot", root)._views.main == "agent"


def test_features_of_other_names_and_widths(root: Path) -> None:
    source = open_source("lerobot", root, options={"state": "action", "action": "observation.state"})
    assert (source.spec.state_dim, source.spec.action_dim) == (7, 8)
    clip = source.read(source.clips()[0], EVERY)
    assert (clip.state.shape[1], clip.action.shape[1]) == (7, 8)
    with pytest.raises(ValueError, match=r"Option action='effort'.*choose from observation\.state, action"):
        open_source("lerobot", root, options={"action": "effort"})
    change_json(root / "meta/info.json", lambda info: info["features"].pop("action"))
    without = open_source("lerobot", root)
    assert without.spec.action_dim == 0
    clip = without.read(without.clips()[0], EVERY)
    assert clip.action is clip.trajectory is clip.is_pad is None
    assert clip.state.shape[1] == 8


def test_splits(root: Path) -> None:
    change_json(root / "meta/info.json", lambda info: info.update(splits={"train": "0:2", "val": "2:3"}))
    assert [ref.split for ref in open_source("lerobot", root).clips()] == ["train", "train", "val"]
    assert [ref.key for ref in open_source("lerobot", root, split="val").clips()] == ["episode_000002"]
    with pytest.raises(ValueError, match="no split 'test'; choose from train, val"):
        open_source("lerobot", root, split="test")


def test_a_copy_in_another_process_reads_the_same(root: Path) -> None:
    source = open_source("lerobot", root)
    ref = source.clips()[2]
    assert len(pickle.dumps(source)) < 4000
    again = pickle.loads(pickle.dumps(source)).read(ref, EVERY)
    np.testing.assert_array_equal(again.rgb, source.read(ref, EVERY).rgb)


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


def test_the_hub(v30: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    snapshot = v30.rename(v30.with_name("0123abc"))

    def download(repo: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo, repo_type, revision, *allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    options = {"repo": "somebody/table", "revision": "v3.0", "view": "wrist"}
    source = open_source("lerobot", options=options)
    assert asked == [
        ("somebody/table", "dataset", "v3.0", "meta/*"),
        ("somebody/table", "dataset", "v3.0", "meta/*", "data/*", "videos/*observation.images.wrist/*"),
    ]
    assert source.spec.title == "somebody/table at 0123abc"
    assert not read_all(source)


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def fail_with(error: Exception) -> None:
        def download(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    fail_with(LocalEntryNotFoundError("no connection\nmore"))
    with pytest.raises(ValueError, match=r"a/b at revision main cannot be downloaded \(no connection\).*--root DIR"):
        open_source("lerobot", options={"repo": "a/b"})
    fail_with(HFValidationError("two slashes"))
    with pytest.raises(ValueError, match="no OWNER/NAME"):
        open_source("lerobot", options={"repo": "a/b/c"})
    with pytest.raises(ValueError, match=r"needs --root or dataset\.repo"):
        open_source("lerobot")


def test_the_root_excludes_the_hub(root: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        open_source("lerobot", root, options={"repo": "a/b"})
    with pytest.raises(ValueError, match="leave it out with --root"):
        open_source("lerobot", root, options={"revision": "main"})


def test_pooled_statistics_are_those_of_all_rows() -> None:
    from pipeline.sim.lerobot_files import array_stats

    rng = np.random.default_rng(0)
    parts = [rng.normal(k, 1 + k, (5 + 3 * k, 2)) for k in range(3)]
    pooled, whole = pooled_stats(map(array_stats, parts)), array_stats(np.concatenate(parts))
    assert pooled.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(pooled[name], value)
