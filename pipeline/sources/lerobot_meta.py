"""What the `meta` folder of a LeRobot dataset says: its features, and where each episode's table and videos are.

Versions v2.1 (a file an episode) and v3.0 (episodes share files) become the same list.
"""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bounded_parquet import BadTable, open_parquet, read_parquet
from pipeline.foreign import BadJson, inside, json_lines, read_json, shortened

V21, V30 = "v2.1", "v3.0"
INFO = "meta/info.json"
_UPGRADES = {
    "v2.0": "lerobot 0.3: python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 --repo-id=...",
    "v1.6": "lerobot 0.1: python lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py",
}
MAX_EPISODES = 5_000_000
"""Of a dataset: some fifty times the largest on the Hub."""

MAX_LIST = 4 << 30
"""Bytes of a file of them, unpacked."""

MAX_SECONDS = 1e6
"""Into a video, of an episode's first frame: 11 days."""

_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError)
"""What values of other kinds than were expected come to."""

_SPEC = re.compile(r"0?[0-9]{0,2}d?")
"""How a template may ask for a number: `06d`."""

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
        info = read_json(path)
        version = str(info["codebase_version"])[:60]
    except BadJson as error:
        raise ValueError(f"{path} {error}; expected a JSON object with codebase_version.") from None
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({shortened(repr(error))}); expected a JSON object with codebase_version."
        ) from None
    if version not in (V21, V30):
        how = _UPGRADES.get(version, _UPGRADES["v1.6"] if version.startswith("v1") else "update this program")
        raise ValueError(
            f"{path}: version {version} of LeRobot's format is not supported, only {V21} and {V30} are. To convert it:"
            f" {how}."
        )
    try:
        return _info(version, info)
    except _BROKEN as error:
        said = shortened(repr(error))
        raise ValueError(f"{path} does not fit LeRobot's format {version} ({said}); download it again.") from None


def read_episodes(root: Path, info: Info) -> Iterator[EpisodeFiles]:
    """Every episode, by its index. ValueError for lists that are missing or damaged."""
    rows = _rows_v21(root) if info.version == V21 else _rows_v30(root)
    in_videos = [camera.key for camera in info.cameras.values() if camera.in_video]
    for count, (where, row) in enumerate(rows):
        if count == MAX_EPISODES:
            raise ValueError(f"{where} is one episode more than the {MAX_EPISODES:,} that are read of a dataset.")
        try:
            yield _episode(root, info, row, in_videos)
        except _BROKEN as error:
            said = shortened(repr(error))
            raise ValueError(f"{where} does not fit LeRobot's format {info.version} ({said}).") from None


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
    if (chunks_size := int(info["chunks_size"])) < 1:
        raise ValueError(f"chunks_size is {chunks_size}")
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
        chunks_size=chunks_size,
    )


def _is_depth(feature: Mapping[str, Any]) -> bool:
    notes = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))


def _range(text: str) -> tuple[int, int]:
    first, _, end = text.partition(":")
    return int(first), int(end)


def _episode(root: Path, info: Info, row: Mapping[str, Any], in_videos: Sequence[str]) -> EpisodeFiles:
    index, length = int(row["episode_index"]), int(row["length"])
    if not (0 <= index < 10**9 and abs(length) < 10**15):
        raise ValueError(f"episode {shortened(index, 30)} has {shortened(length, 30)} rows")
    tasks = [row["tasks"]] if isinstance(row["tasks"], str) else list(row["tasks"])

    def path(template: str, prefix: str = "", key: str = "") -> Path:
        if info.version == V21:
            names: dict[str, Any] = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        else:
            names = {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}
        return inside(root, filled(template, {"video_key": key, **names}))

    videos = {}
    for key in in_videos:
        begin = 0.0 if info.version == V21 else float(row[f"videos/{key}/from_timestamp"])
        if not 0 <= begin <= MAX_SECONDS:
            raise ValueError(f"the video {key} begins at {begin} s")
        videos[key] = (path(info.video_path, f"videos/{key}", key), begin)
    return EpisodeFiles(
        index=index,
        length=length,
        text="; ".join(map(str, tasks)),
        data=path(info.data_path, "data"),
        videos=videos,
    )


def filled(template: str, names: Mapping[str, Any]) -> str:
    """A template of a path with its fields filled in. ValueError for one that asks for anything but `names`.

    `str.format` gives a template of somebody else's the attributes of what is filled in, and widths of any size.
    """
    parts = []
    for text, field, spec, conversion in string.Formatter().parse(template):
        parts.append(text)
        if field is None:
            continue
        if field not in names or conversion or not _SPEC.fullmatch(spec or ""):
            wanted = f"{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            raise ValueError(
                f"the template {shortened(template)!r} asks for {shortened(wanted)}, expected {', '.join(names)},"
                " with at most two digits of width"
            )
        parts.append(format(names[field], spec or ""))
    return "".join(parts)


def _rows_v21(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = root / "meta/episodes.jsonl"
    try:
        for number, row in json_lines(path):
            yield f"{path}, line {number},", row
    except BadJson as error:
        raise ValueError(f"{path}, {error}; download it again.") from None
    except OSError as error:
        raise ValueError(f"{path}, the list of episodes, cannot be read ({error}); download it again.") from None


def _rows_v30(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    paths = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise ValueError(f"{root / 'meta/episodes'} holds no Parquet file, expected the list of episodes there.")
    for path in paths:
        try:
            names = open_parquet(path, (), most_rows=MAX_EPISODES).schema_arrow.names
            names = [name for name in names if not name.startswith("stats/")]
            rows = read_parquet(path, names, most_rows=MAX_EPISODES, most_bytes=MAX_LIST).to_pylist()
        except (BadTable, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, a list of episodes, {shortened(error)}; download it again.") from None
        for number, row in enumerate(rows):
            yield f"{path}, row {number},", row
