"""ALOHA (Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", RSS 2023) as HDF5."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_specs.arrays import Array
from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.sources.base import check_options, check_ref, check_split, unique_keys
from pipeline.sources.frames import check_count, pick_indices
from pipeline.sources.hdf5 import (
    HDF5_SUFFIXES,
    check_pictures,
    flag,
    member,
    names_in,
    numbers,
    open_hdf5,
    row,
)
from pipeline.sources.images import decode_image
from pipeline.sources.robot import VIEW_OPTIONS, RobotEpisode, Views, choice, fitted, positive, robot_array
from pipeline.sources.walk import suffix_of, walk

HZ = 50.0
MAX_JPEG = 64 << 20
"""Bytes of a compressed picture."""

_MAIN = ("top", "cam_high")  # what simulation and robots call the camera over the table


class AlohaSource:
    """Episodes of two arms, simulated or real: a clip for every HDF5 file below `root`, which may be one file.

    `state` f4 [14] is `observations/qpos`, `action` f4 [14] the absolute positions that the joints are sent to: left
    arm 6 joints and gripper in [0, 1], then right. Row t was seen before `action[t]`, in files of the simulation as of
    robots; none is padded. (ACT's own training code reads the actions of robots one row earlier than those of the
    simulation, without a measured reason; this source does not.) Pictures are as they are, or JPEG bytes where the
    file has the attribute `compress`.

    The files hold neither an instruction nor a rate: options `instruction` (none) and `hz` (50). More options: `view`
    (the camera of `rgb`: by default `top` or `cam_high`, else the first by name), `views` (cameras for `Clip.views`,
    commas between), `views_size` (native, or pixels of a square), `channels` (rgb, or bgr for files of OpenCV).
    """

    spec: ClassVar[DatasetSpec] = DatasetSpec(
        name="aloha",
        title="ALOHA episodes",
        splits=(),
        where=(
            "Download the simulated or human demonstrations that the ACT project page links to, or record some with"
            " ACT's record_sim_episodes.py or an ALOHA."
        ),
        licence="MIT for the demonstrations of ACT; others their own",
        state_dim=14,
        action_dim=14,
    )
    root_suffixes: ClassVar[tuple[str, ...]] = HDF5_SUFFIXES

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        if root is None:
            raise ValueError(f"Dataset 'aloha' needs --root. {self.spec.where}")
        check_split(self.spec, split)
        check_options(self.spec, options, (*VIEW_OPTIONS, "channels", "hz", "instruction"))
        self._hz = positive(self.spec, options, "hz", HZ)
        self._bgr = choice(self.spec, options, "channels", ("rgb", "bgr")) == "bgr"
        self._text = options.get("instruction", "")
        self._root, self._options = root, dict(options)
        self._listed: tuple[tuple[ClipRef, ...], Views] | None = None

    def clips(self) -> Sequence[ClipRef]:
        """As in `Source`; ValueError where there is no HDF5 file, none that is ALOHA's, or no camera of that name."""
        if self._listed is None:
            self._listed = self._list()
        return self._listed[0]

    def __getstate__(self) -> dict[str, Any]:
        # a worker is handed the clips that it reads, and needs to know the cameras
        return {**self.__dict__, "_listed": ((), self._chosen())}

    def _chosen(self) -> Views:
        self.clips()
        assert self._listed is not None
        return self._listed[1]

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """As in `Source`; only the pictures that are taken are read."""
        import h5py

        check_ref(ref)
        assert ref.path is not None, f"clip {ref.key} has neither a path nor a problem"
        views = self._chosen()
        with open_hdf5(ref.key, ref.path) as file:

            def array(path: str, dims: int, rows: int | None = None) -> Array:
                data = member(ref.key, file, path, h5py.Dataset, holder="the file")
                values = numbers(ref.key, data, name=path)
                return robot_array(ref.key, f"{ref.path}: {path}", values, dims=dims, rows=rows)

            action = array("action", self.spec.action_dim)
            state = array("observations/qpos", self.spec.state_dim, len(action))
            time = np.arange(len(action)) / self._hz
            taken = pick_indices(time, frames)
            check_count(ref.key, len(taken), frames, len(action))

            def pictures(camera: str, size: int | None) -> Array:
                data = member(ref.key, file, f"observations/images/{camera}", h5py.Dataset, holder="the file")
                compressed = flag(ref.key, file, "compress")
                if not compressed:
                    check_pictures(ref.key, data, len(action), name=f"observations/images/{camera}")
                rgbs = (_jpeg(ref.key, data, i) if compressed else row(ref.key, data, i) for i in taken)
                return np.stack([fitted(rgb[..., ::-1] if self._bgr else rgb, size) for rgb in rgbs])

            return Clip(
                key=ref.key,
                split=ref.split,
                text=ref.text,
                time=time[taken],
                **views.pictures(pictures, frames.size),
                **RobotEpisode(state=state, action=action, hz=self._hz).fields(taken),
            )

    def _list(self) -> tuple[tuple[ClipRef, ...], Views]:
        if self._root.is_file():
            base, paths = self._root.parent, [self._root]
        else:
            base = self._root
            folders = walk(base, follow=True)
            paths = [f.path / n for f in folders for n in (*f.files, *f.links) if suffix_of(n) in HDF5_SUFFIXES]
        if not paths:
            raise ValueError(
                f"{self._root} holds no HDF5 file ({', '.join(HDF5_SUFFIXES)}); point --root at a folder of ALOHA"
                f" episodes or at one. {self.spec.where}"
            )
        names = [path.relative_to(base).with_suffix("").as_posix() for path in paths]
        keys = unique_keys([str(path) for path in paths], names)
        refs, cameras = [], dict[str, None]()
        for index, (key, path) in enumerate(sorted(zip(keys, paths, strict=True))):
            try:
                found, extra = _describe(key, path)
                cameras.update(dict.fromkeys(found))
                problem = None
            except BadClip as error:
                extra, problem = (), error.reason
            refs.append(ClipRef(key=key, path=path, text=self._text, index=index, problem=problem, extra=extra))
        if not cameras:
            raise ValueError(f"{self._root} holds no episode of ALOHA with pictures: {refs[0].problem}.")
        default = next((name for name in _MAIN if name in cameras), min(cameras))
        return tuple(refs), Views.chosen(self.spec, self._options, sorted(cameras), default)


def _describe(key: str, path: Path) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """The cameras of an episode, and whether it was simulated, where the file says so."""
    import h5py

    with open_hdf5(key, path) as file:
        images = member(key, file, "observations/images", h5py.Group, holder="the file")
        names = names_in(key, images)
        if not names:
            raise BadClip(key, f"{path}: observations/images is empty, expected a camera; record the episode again")
        sim = flag(key, file, "sim")
        return names, () if sim is None else (("sim", str(sim)),)


def _jpeg(key: str, data: Any, index: int) -> Array:
    """Picture `index` of a dataset [T,bytes] of JPEG files, padded with zeros to one length."""
    name = f"{data.file.filename}: picture {index} of {data.name}"
    if data.ndim != 2 or data.dtype != np.uint8:
        raise BadClip(key, f"{name}: {data.dtype} {data.shape}, expected JPEG bytes, uint8 (steps, bytes)")
    if index >= data.shape[0]:
        raise BadClip(key, f"{name} is missing: there are {data.shape[0]}; record the episode again")
    if data.shape[1] > MAX_JPEG:
        raise BadClip(key, f"{name} claims {data.shape[1]:,} bytes, expected at most {MAX_JPEG:,}")
    return decode_image(key, name, io.BytesIO(row(key, data, index).tobytes()))
