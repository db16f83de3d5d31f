"""Datasets in LeRobot's format, v2.1 and v3.0, from a folder or from the Hub."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.bounded_parquet import BadTable, read_parquet, values_of
from pipeline.foreign import UNREADABLE, shortened
from pipeline.sources.base import check_options, check_ref, check_split, text_problem
from pipeline.sources.frames import check_count, pick_indices
from pipeline.sources.images import decode_image
from pipeline.sources.lerobot_hub import download
from pipeline.sources.lerobot_meta import EpisodeFiles, read_episodes, read_info
from pipeline.sources.moments import decode_moments
from pipeline.sources.robot import MAX_STEPS, VIEW_OPTIONS, RobotEpisode, Views, fitted, robot_array

MAX_EPISODE = 4 << 30
"""Bytes of an episode's rows of some columns, unpacked."""

_OPTIONS = (*VIEW_OPTIONS, "state", "action", "repo", "revision")


class LeRobotSource:
    """Episodes of a LeRobot dataset: a clip each, with the key `episode_000012`.

    `root` is the folder that holds `meta`, `data` and `videos`; without it the option `repo` names a dataset of the
    Hub (and `revision` a branch, tag or commit), of which the cameras that are asked for are downloaded into the
    cache of huggingface_hub.

    Row i of an episode's table is what was seen, and the action that leads on from there; none is padded. Frames are
    seen i / fps after the start; pictures come from videos (any codec of FFmpeg's, AV1, H.264 and HEVC among them) or
    from the table. The text is the episode's task; of several tasks all, with "; " between. Widths of state and
    action, the rate and the splits are those in `meta/info.json`. The statistics in `meta` are not read: a store has
    those of its training clips.

    Options: `view` (the camera of `rgb`; by default the first in `meta/info.json`), `views` (cameras for `Clip.views`,
    commas between), `views_size` (native, or pixels of a square), `state` and `action` (the features to take,
    `observation.state` and `action`), `repo`, `revision` (main). Cameras go by the end of their feature's name: `top`
    for `observation.images.top`.
    """

    spec: DatasetSpec = DatasetSpec(
        name="lerobot",
        title="A dataset in LeRobot's format",
        splits=(),
        where=(
            "Name a dataset of the Hub with dataset.repo=OWNER/NAME, or download one with `hf download OWNER/NAME"
            " --repo-type dataset --local-dir DIR` and give --root DIR."
        ),
        licence="that of the dataset",
        needs_root=False,
    )

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        check_options(self.spec, options, _OPTIONS)
        if (root is None) == ("repo" not in options):
            raise ValueError(f"Dataset 'lerobot' needs --root or dataset.repo, and not both. {self.spec.where}")
        if root is not None and "revision" in options:
            raise ValueError("Option revision of dataset 'lerobot' belongs to dataset.repo: leave it out with --root.")
        title = self.spec.title
        if root is None:
            repo, revision = options["repo"], options.get("revision", "main")
            root, commit = download(repo, revision, ["meta/*"])
            title = f"{repo} at {commit}"
        self._info = read_info(root)
        if not self._info.cameras:
            raise ValueError(f"{root} has no camera: meta/info.json lists no feature of dtype video or image.")
        self._views = Views.chosen(self.spec, options, tuple(self._info.cameras), next(iter(self._info.cameras)))
        self._state = self._feature(options, "state", "observation.state")
        self._action = self._feature(options, "action", "action")
        dims = self._info.dims
        self.spec = replace(
            self.spec,
            title=title,
            splits=tuple(self._info.splits),
            state_dim=dims[self._state] if self._state else 0,
            action_dim=dims[self._action] if self._action else 0,
        )
        self._split = check_split(self.spec, split)
        if "repo" in options:
            wanted = {self._info.cameras[name].key for name in (self._views.main, *self._views.further)}
            videos = [f"videos/*{key}/*" for key in sorted(wanted)]
            root, _ = download(options["repo"], options.get("revision", "main"), ["meta/*", "data/*", *videos])
        self._root = root
        self._clips: tuple[ClipRef, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clips": None}  # a worker is handed the clips that it reads

    def clips(self) -> Sequence[ClipRef]:
        """As in `Source`; ValueError for lists of episodes that are missing or damaged."""
        if self._clips is None:
            refs = [self._ref(episode) for episode in read_episodes(self._root, self._info)]
            wanted = (ref for ref in refs if self._split in (None, ref.split))
            self._clips = tuple(sorted(wanted, key=lambda ref: ref.key))
            if len({ref.key for ref in self._clips}) != len(self._clips):
                raise ValueError(f"{self._root} lists an episode twice; download meta again.")
        return self._clips

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """As in `Source`; only the pictures that are taken are decoded."""
        check_ref(ref)
        notes = dict(ref.extra)
        length, fps = int(notes["length"]), self._info.fps
        table = self._table(ref, length)
        episode = RobotEpisode(
            state=self._array(ref, table, self._state, self.spec.state_dim),
            action=self._array(ref, table, self._action, self.spec.action_dim),
            hz=fps,
        )
        time = np.arange(length) / fps
        taken = pick_indices(time, frames)
        check_count(ref.key, len(taken), frames, length)

        def pictures(name: str, size: int | None) -> Array:
            camera = self._info.cameras[name]
            if not camera.in_video:
                return self._images(ref, camera.key, taken, size)
            begin = float(notes[f"from/{camera.key}"])
            return decode_moments(
                ref.key,
                self._root / notes[f"video/{camera.key}"],
                begin + time[taken],
                period=1 / fps,
                end=begin + time[-1],
                size=size,
            )

        return Clip(
            key=ref.key,
            split=ref.split,
            text=ref.text,
            time=time[taken],
            **self._views.pictures(pictures, frames.size),
            **episode.fields(taken),
        )

    def _feature(self, options: Mapping[str, str], option: str, default: str) -> str | None:
        """The feature that an option names; None where it names none and the dataset lacks the usual one."""
        name = options.get(option, default)
        if name in self._info.dims:
            return name
        if option in options:
            choices = ", ".join(self._info.dims)
            raise ValueError(f"Option {option}={name!r} of dataset 'lerobot': choose from {choices}.")
        return None

    def _ref(self, episode: EpisodeFiles) -> ClipRef:
        notes = [("length", str(episode.length))]
        for name in dict.fromkeys((self._views.main, *self._views.further)):
            key = self._info.cameras[name].key
            if key in episode.videos:
                path, begin = episode.videos[key]
                notes += [(f"video/{key}", path.relative_to(self._root).as_posix()), (f"from/{key}", repr(begin))]
        problem = text_problem(episode.text)
        problem = f"its task {problem}" if problem else None
        if not 0 < episode.length <= MAX_STEPS:
            problem = f"meta lists it with {episode.length} rows, expected 1 to {MAX_STEPS}"
        return ClipRef(
            key=f"episode_{episode.index:06d}",
            split=self._info.split_of(episode.index),
            text=episode.text,
            path=episode.data,
            index=episode.index,
            problem=problem,
            extra=tuple(notes),
        )

    def _table(self, ref: ClipRef, length: int) -> Any:
        """The robot's columns of the episode's rows, checked to be all of them and in order."""
        names = [name for name in (self._state, self._action) if name]
        table = _read_rows(ref, ["frame_index", "timestamp", *names])
        if table.num_rows != length:
            raise BadClip(
                ref.key,
                f"{ref.path} has {table.num_rows} rows of the episode, meta lists {length}; download both again",
            )
        index = _numbers(ref, table, "frame_index")
        if not np.array_equal(index, np.arange(length)):
            raise BadClip(ref.key, f"{ref.path}: frame_index of the episode does not count 0, 1, ... {length - 1}")
        stamps = _numbers(ref, table, "timestamp")
        if len(stamps) != length:
            raise BadClip(ref.key, f"{ref.path}: timestamp is no column of numbers, one a row")
        late = np.abs(stamps - index / self._info.fps)
        if not (late < 0.5 / self._info.fps).all():
            row = int(np.argmax(~(late < 0.5 / self._info.fps)))
            raise BadClip(
                ref.key,
                f"{ref.path}: row {row} of the episode is stamped {stamps[row]:.4f} s, expected"
                f" {row / self._info.fps:.4f} s at {self._info.fps:g} rows a second; record it again",
            )
        return table

    def _array(self, ref: ClipRef, table: Any, name: str | None, dims: int) -> Array | None:
        if name is None:
            return None
        return robot_array(ref.key, f"{ref.path}: {name} of {ref.key}", _values(ref, table, name), dims=dims)

    def _images(self, ref: ClipRef, key: str, taken: Sequence[int], size: int | None) -> Array:
        """Pictures kept in the table as the bytes of PNG or JPEG files."""
        table = _read_rows(ref, [key], batch=64)
        if table.num_rows <= max(taken):
            raise BadClip(ref.key, f"{ref.path} has {table.num_rows} rows of {key}, expected more; download it again")
        cells = _values(ref, table.take(list(taken)), key)
        rgbs = []
        for row, cell in zip(taken, cells, strict=True):
            name = f"{ref.path}: {key} of {ref.key}, row {row},"
            if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
                raise BadClip(ref.key, f"{name} holds no picture; expected the bytes of a PNG or JPEG")
            rgbs.append(fitted(decode_image(ref.key, name, io.BytesIO(cell["bytes"])), size))
        if len({rgb.shape for rgb in rgbs}) > 1:
            raise BadClip(ref.key, f"{ref.path}: {key} changes its size within {ref.key}, expected one size")
        return np.stack(rgbs)


def _read_rows(ref: ClipRef, columns: Sequence[str], *, batch: int = 4096) -> Any:
    """Some columns of an episode's rows as a table; BadClip for a file that is missing, damaged or lacks one."""
    path = ref.path
    assert path is not None, f"clip {ref.key} has no table"
    if not path.is_file():
        raise BadClip(ref.key, f"{path} is missing, expected the episode's table; download it again")
    where = ("episode_index", ref.index)
    try:
        return read_parquet(path, columns, where=where, most_bytes=MAX_EPISODE, batch=batch)
    except (BadTable, OSError) as error:
        raise BadClip(
            ref.key, f"{path} {error}; it is truncated, damaged or another table: download it again"
        ) from error


def _values(ref: ClipRef, table: Any, column: str) -> list[Any]:
    try:
        return values_of(table, column)
    except BadTable as error:
        raise BadClip(ref.key, f"{ref.path} {error}; download it again") from error


def _numbers(ref: ClipRef, table: Any, column: str) -> Array:
    """A column of numbers f8 [T]."""
    try:
        return np.array(_values(ref, table, column), dtype=np.float64).reshape(-1)
    except UNREADABLE as error:
        raise BadClip(ref.key, f"{ref.path}: {column} is no column of numbers ({shortened(error)})") from error
