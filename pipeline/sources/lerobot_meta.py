"""What the `meta` folder of a LeRobot dataset says: its features, and where each episode's table and videos are.

Versions v2.1 (a file an episode) and v3.0 (episodes share files) become the same list.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

V21, V30 = "v2.1", "v3.0"
INFO = "meta/info.json"
_UPGRADES = {
    "v2.0": "lerobot 0.3: python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 --repo-id=...",
    "v1.6": "lerobot 0.1: python lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py",
}
_PREFIXES = ("observation.images.", "observation.")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera: the feature's `key`, and whether its pictures are in videos or in the table."""

    key: str
    in_video: bool


@dataclass(frozen=True, kw_only=True)
class Info:
    """`meta/info.json` as far as it is used. `cameras` by short name, in the file's order; depth maps are left out."""

    version: str
    fps: float
    cameras: dict[str, Camera]
    dims: dict[str, int]
    splits: dict[str, tuple[int, int]]
    data_path: str
    video_path: str
    chunks_size: int

    def split_of(self, episode: int) -> str:
        """The split whose range holds the episode; "" for none."""
        return next((name for name, (first, end) in self.splits.items() if first <= episode < end), "")


@dataclass(frozen=True, kw_only=True)
class EpisodeFiles:
    """An episode: `length` rows of the table `data`; by camera key the video and the seconds it begins at in there."""

    index: int
    length: int
    text: str
    data: Path
    videos: dict[str, tuple[Path, float]]


def read_info(root: Path) -> Info:
    """`meta/info.json` under `root`; ValueError where there is none, or it is of a version that is not supported."""
    path = root / INFO
    if not path.is_file():
        raise ValueError(
            f"{root} holds no LeRobot dataset: it has no {INFO}. Point --root at the folder that holds meta, data and"
            " videos."
        )
    try:
        info = json.loads(path.read_bytes())
        version = str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); expected a JSON object with codebase_version.") from None
    if version not in (V21, V30):
        how = _UPGRADES.get(version, _UPGRADES["v1.6"] if version.startswith("v1") else "update this program")
        raise ValueError(
            f"{path}: version {version} of LeRobot's format is not supported, only {V21} and {V30} are. To convert it:"
            f" {how}."
        )
    try:
        return _info(version, info)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} does not fit LeRobot's format {version} ({error!r}); download it again.") from None


def read_episodes(root: Path, info: Info) -> Iterator[EpisodeFiles]:
    """Every episode, by its index. ValueError for lists that are missing or damaged."""
    rows = _rows_v21(root) if info.version == V21 else _rows_v30(root)
    in_videos = [camera.key for camera in info.cameras.values() if camera.in_video]
    for where, row in rows:
        try:
            yield _episode(root, info, row, in_videos)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{where} does not fit LeRobot's format {info.version} ({error!r}).") from None


def _info(version: str, info: Mapping[str, Any]) -> Info:
    features = info["features"]
    cameras = {}
    for key, feature in features.items():
        if feature["dtype"] in ("video", "image") and not _is_depth(feature):
            short = next((key.removeprefix(p) for p in _PREFIXES if key.startswith(p)), key)
            cameras[key if short in cameras else short] = Camera(key=key, in_video=feature["dtype"] == "video")
    fps = float(info["fps"])
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}")
    return Info(
        version=version,
        fps=fps,
        cameras=cameras,
        dims={
            key: int(feature["shape"][0])
            for key, feature in features.items()
            if feature["dtype"].startswith(("float", "int")) and len(feature["shape"]) == 1
        },
        splits={str(name): _range(text) for name, text in (info.get("splits") or {}).items()},
        data_path=str(info["data_path"]),
        video_path=str(info.get("video_path") or ""),
        chunks_size=int(info["chunks_size"]),
    )


def _is_depth(feature: Mapping[str, Any]) -> bool:
    notes = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))


def _range(text: str) -> tuple[int, int]:
    first, _, end = text.partition(":")
    return int(first), int(end)


def _episode(root: Path, info: Info, row: Mapping[str, Any], in_videos: Sequence[str]) -> EpisodeFiles:
    index = int(row["episode_index"])
    tasks = [row["tasks"]] if isinstance(row["tasks"], str) else list(row["tasks"])

    def path(template: str, prefix: str = "", key: str = "") -> Path:
        if info.version == V21:
            names: dict[str, Any] = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        else:
            names = {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}
        return _inside(root, template.format(video_key=key, **names))

    videos = {}
    for key in in_videos:
        begin = 0.0 if info.version == V21 else float(row[f"videos/{key}/from_timestamp"])
        videos[key] = (path(info.video_path, f"videos/{key}", key), begin)
    return EpisodeFiles(
        index=index,
        length=int(row["length"]),
        text="; ".join(map(str, tasks)),
        data=path(info.data_path, "data"),
        videos=videos,
    )


def _inside(root: Path, name: str) -> Path:
    """`root / name`; ValueError if that lies outside. Links are not followed: a Hub cache consists of them."""
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(os.path.normpath(root)):
        raise ValueError(f"the path {name!r} lies outside of the dataset")
    return path


def _rows_v21(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = root / "meta/episodes.jsonl"
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}, the list of episodes, cannot be read ({error}); download it again.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}, is no JSON ({error}); download it again.") from None
            yield f"{path}, line {number},", row


def _rows_v30(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise ValueError(f"{root / 'meta/episodes'} holds no Parquet file, expected the list of episodes there.")
    for path in paths:
        try:
            names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
            rows = parquet.read_table(path, columns=names).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}, a list of episodes, is damaged ({error}); download it again.") from None
        for number, row in enumerate(rows):
            yield f"{path}, row {number},", row
