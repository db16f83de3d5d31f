"""Any folder of videos or of image sequences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.sources.base import check_options, check_ref, check_split, unique_keys
from pipeline.sources.decode import VIDEO_SUFFIXES, read_video
from pipeline.sources.images import IMAGE_SUFFIXES, natural_order, read_images
from pipeline.sources.walk import Folder, list_folder, suffix_of, walk

_DEFAULT_FPS = 30.0


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A clip before it has a key: its path below the root, the same without a suffix, and what is wrong with it."""

    identity: str
    name: str
    path: Path
    problem: str | None = None


class VideoSource:
    """Every video below `root`, and every folder that directly holds two or more images and no video, as a clip.

    Keys are paths below `root` without the suffix; the text is empty. Images are taken in natural order of their names
    (2 before 10) at `fps` images a second (option `fps`, default 30), for images carry no timestamps. Hidden files and
    folders are left out, and so are links to folders (what they show inside `root` is listed where it is) and links to
    files outside of `root`. Files of other kinds are counted in `ignored`, known after `clips()`.
    """

    spec: ClassVar[DatasetSpec] = DatasetSpec(
        name="video",
        title="A folder of videos or image sequences",
        splits=(),
        where=f"Any folder with videos ({', '.join(VIDEO_SUFFIXES)}) or folders of images will do.",
        licence="that of the videos",
    )

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        if root is None:
            raise ValueError(f"Dataset 'video' needs --root. {self.spec.where}")
        check_split(self.spec, split)
        check_options(self.spec, options, ("fps",))
        self.fps = _rate(options["fps"]) if "fps" in options else _DEFAULT_FPS
        self.root = root.resolve()
        self.ignored = 0
        self._clips: tuple[ClipRef, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clips": None}  # a worker is handed the clips that it reads

    def clips(self) -> Sequence[ClipRef]:
        """As in `Source`; ValueError for a folder without any video or image sequence."""
        if self._clips is None:
            self._clips = self._list()
        return self._clips

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """As in `Source`."""
        check_ref(ref)
        assert ref.path is not None, f"clip {ref.key} has neither a path nor a problem"
        if not ref.path.is_dir():
            return read_video(ref, frames)
        try:
            paths = self._images(list_folder(ref.path))
        except ValueError as error:
            raise BadClip(ref.key, str(error)) from error
        rgb, time = read_images(ref.key, paths, self.fps, frames)
        return Clip(key=ref.key, rgb=rgb, time=time, split=ref.split, text=ref.text)

    def _list(self) -> tuple[ClipRef, ...]:
        found: list[_Found] = []
        others: Counter[str] = Counter()
        for folder in walk(self.root):
            here, used = self._in_folder(folder)
            found += here
            others.update(suffix_of(name) for name in (*folder.files, *folder.links))
            others.subtract(used)
        self.ignored = others.total()
        if not found:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
            raise ValueError(
                f"{self.root} holds no video ({', '.join(VIDEO_SUFFIXES)}) and no folder of two or more images"
                f" ({', '.join(IMAGE_SUFFIXES)}); files found: {kinds or 'none'}. Point --root at the folder that"
                " holds them."
            )
        keys = unique_keys([clip.identity for clip in found], [clip.name for clip in found])
        return tuple(
            ClipRef(key=key, path=clip.path, problem=clip.problem, index=i)
            for i, (key, clip) in enumerate(sorted(zip(keys, found, strict=True), key=lambda pair: pair[0]))
        )

    def _in_folder(self, folder: Folder) -> tuple[list[_Found], list[str]]:
        """The clips directly in a folder, and the suffixes of the files that they consist of."""
        found = []
        for name in self._names(folder):
            if suffix_of(name) in VIDEO_SUFFIXES:
                path = folder.path / name
                broken = name in folder.links and not path.is_file()
                found.append(
                    _Found(
                        identity=path.relative_to(self.root).as_posix(),
                        name=path.relative_to(self.root).with_suffix("").as_posix(),
                        path=path,
                        problem=f"{path} is a link to a missing file, expected a video" if broken else None,
                    )
                )
        if found:  # images beside videos are their thumbnails
            return found, [suffix_of(clip.path.name) for clip in found]
        images = self._images(folder)
        if len(images) < 2:
            return [], []
        name = folder.path.relative_to(self.root).as_posix()
        return [_Found(identity=f"{name}/", name=name, path=folder.path)], [suffix_of(p.name) for p in images]

    def _images(self, folder: Folder) -> list[Path]:
        names = [name for name in self._names(folder) if suffix_of(name) in IMAGE_SUFFIXES]
        return [folder.path / name for name in sorted(names, key=natural_order)]

    def _names(self, folder: Folder) -> list[str]:
        """Files, and links to files inside the root."""
        inside = [name for name in folder.links if (folder.path / name).resolve().is_relative_to(self.root)]
        return sorted([*folder.files, *inside])


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise ValueError(f"Option fps={text!r} of dataset 'video': expected images a second, above 0 and at most 1000.")
    return value
