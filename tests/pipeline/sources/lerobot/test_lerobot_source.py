"""Datasets in LeRobot's formats, from a folder and from the Hub."""

import io
import pickle
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from lerobot_recordings import EVERY, change_json, read_all
from PIL import Image
from pyarrow import parquet

from data_specs.datasets import FrameSampling
from pipeline.sim.lerobot_files import encode_video
from pipeline.sources import open_source


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
