"""Something-Something V2 (Goyal et al., "The 'something something' video database", ICCV 2017; version 2)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import Clip
from pipeline.foreign import BadJson, read_bounded, read_json
from pipeline.sources.base import check_options, check_split, text_problem, unique_keys
from pipeline.sources.decode import VIDEO_SUFFIXES, read_video
from pipeline.sources.walk import suffix_of, walk

MAX_LABELS = 128 << 20
"""Bytes of a label file: that of the 168,913 training videos has 34 million."""

MAX_ID = 200
"""Characters of an id, which names a file."""

T = TypeVar("T")

_LABEL_NAMES = ("something-something-v2-{}.json", "{}.json")
_CLASS_NAMES = ("something-something-v2-labels.json", "labels.json")


class Ssv2Source:
    """220,847 videos of people doing something with something, with a sentence each.

    `root` holds label files and videos in any of the layouts in use: the label files
    `something-something-v2-{train,validation,test}.json` or `{train,validation,test}.json` in `root`, in a folder
    `labels`, beside the videos or one folder up; the videos `<id>.webm` in any folder below `root` (links to folders
    are followed, for videos often lie on another disk). A transcoded video (`.mp4`, ...) is taken where there is no
    `.webm` of that id.

    The key of a clip is its id; keys sort as strings. The text is the label, "" in the test split, which has ids only.
    `extra` holds `template`, and `class` (the index of the template, as a string) where there is a `labels.json`.
    """

    spec: ClassVar[DatasetSpec] = DatasetSpec(
        name="ssv2",
        title="Something-Something V2",
        splits=("train", "validation", "test"),
        where=(
            "Request the 20bn-something-something-v2 videos and the label files from Qualcomm's developer site"
            " (search: Something-Something V2 dataset) and unpack both under one folder."
        ),
        licence="research use; see the licence agreement that comes with the download",
    )

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        """`split`: train, validation (or val), test, or None for every split that has a label file."""
        if root is None:
            raise ValueError(f"Dataset 'ssv2' needs --root. {self.spec.where}")
        self.split = check_split(self.spec, split, aliases={"val": "validation"})
        check_options(self.spec, options)
        self.root = root
        self._clips: tuple[ClipRef, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clips": None}  # a worker is handed the clips that it reads

    def clips(self) -> Sequence[ClipRef]:
        """As in `Source`; ValueError for label files that are missing, no JSON lists, or two that disagree."""
        if self._clips is None:
            self._clips = self._list()
        return self._clips

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """As in `Source`."""
        return read_video(ref, frames)

    def _list(self) -> tuple[ClipRef, ...]:
        tree = _find(self.root)
        wanted = self.spec.splits if self.split is None else (self.split,)
        files = {split: tree.label_file([n.format(split) for n in _LABEL_NAMES]) for split in wanted}
        files = {split: path for split, path in files.items() if path is not None}
        if not files:
            named = self.split or f"{{{','.join(self.spec.splits)}}}"
            raise ValueError(
                f"{self.root} holds no label file of Something-Something V2: expected {_LABEL_NAMES[0].format(named)}"
                f" or {_LABEL_NAMES[1].format(named)} there, in labels/ or beside the videos; {len(tree.videos)} videos"
                " were found. Put the label files there, or read videos without labels with --dataset video."
            )
        classes = _read_classes(tree.label_file(_CLASS_NAMES))
        entries: list[_Entry] = []
        for split, path in files.items():
            assert path is not None
            entries += [_entry(item, position, split, path, classes) for position, item in enumerate(_read_list(path))]
        return tuple(_refs(entries, tree.videos))


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """What lies under the root: path by id, and the folders where label files may be, nearest to the root first."""

    videos: dict[str, str]
    label_folders: list[Path]

    def label_file(self, names: Sequence[str]) -> Path | None:
        """The one file of these names; ValueError if there are two that differ."""
        paths = [folder / name for folder in self.label_folders for name in names if (folder / name).is_file()]
        for other in paths[1:]:
            if _explained(read_bounded, other) != _explained(read_bounded, paths[0]):
                raise ValueError(f"{paths[0]} and {other} differ; keep the one that is meant.")
        return paths[0] if paths else None


def _find(root: Path) -> _Tree:
    """Walk the root once. Of videos with the same id, `.webm` comes first, then the folder nearest to the root."""
    best: dict[str, tuple[int, int]] = {}
    videos: dict[str, str] = {}
    label_folders = {root: None}
    for folder in walk(root, follow=True):
        depth = len(folder.path.parts)
        prefix = f"{folder.path}/"
        has_videos = False
        for name in (*folder.files, *folder.links):
            suffix = suffix_of(name)
            if suffix not in VIDEO_SUFFIXES:
                continue
            has_videos = True
            stem, rank = name[: -len(suffix)], (VIDEO_SUFFIXES.index(suffix), depth)
            if stem not in best or rank < best[stem]:
                best[stem] = rank
                videos[stem] = prefix + name
        if has_videos:
            label_folders[folder.path] = None
            if folder.path != root:
                label_folders[folder.path.parent] = None
        if folder.path.name == "labels":
            label_folders[folder.path] = None
    return _Tree(videos=videos, label_folders=sorted(label_folders, key=lambda p: (len(p.parts), p)))


def _explained(read: Callable[..., T], path: Path) -> T:
    """What `read(path, limit=...)` gives; ValueError for a label file that cannot be read."""
    try:
        return read(path, limit=MAX_LABELS)
    except OSError as error:
        raise ValueError(f"The label file {path} cannot be read: {error.strerror}.") from error
    except BadJson as error:
        raise ValueError(f"The label file {path} {error}; unpack it from the download again.") from error


def _read_json(path: Path) -> Any:
    return _explained(read_json, path)


def _read_list(path: Path) -> list[Any]:
    items = _read_json(path)
    if not isinstance(items, list):
        raise ValueError(
            f"The label file {path} holds a {type(items).__name__}, expected a list of objects with an id and a label."
        )
    return items


def _read_classes(path: Path | None) -> dict[str, str] | None:
    """Index (as a string) by template without brackets; None where there is no such file."""
    if path is None:
        return None
    classes = _read_json(path)
    if not isinstance(classes, dict) or not all(isinstance(index, str) for index in classes.values()):
        raise ValueError(f"The label file {path} is no map from a template to its index, expected {{'...': '0'}}.")
    return classes


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One item of a label file. `name` is its id, or made from its position where it has none."""

    name: str
    split: str
    source: str
    has_id: bool = True
    text: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    problem: str | None = None

    @property
    def identity(self) -> str:
        """Differs between an item without an id and one whose id reads the same as the made-up name."""
        return f"id {self.name}" if self.has_id else f"item {self.name}"


def _entry(item: Any, position: int, split: str, path: Path, classes: dict[str, str] | None) -> _Entry:
    where = f"item {position} of {path.name}"
    name = item.get("id") if isinstance(item, dict) else None
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name or len(name) > MAX_ID or not name.isprintable():
        if isinstance(item, dict):
            problem = (
                f"{where} has {_shown(item, 'id')}, expected a string of at most {MAX_ID} characters that names the"
                " video"
            )
        else:
            problem = f"{where} is a {type(item).__name__}, expected an object with an id and a label"
        made_up = f"{split}-item-{position}"
        return _Entry(name=made_up, split=split, source=path.name, has_id=False, problem=problem)
    if split == "test":
        return _Entry(name=name, split=split, source=path.name)
    text, extra, wrong = _annotation(item, classes)
    found = None if wrong is None else f"{where} has {wrong}"
    return _Entry(name=name, split=split, source=path.name, text=text, extra=extra, problem=found)


def _annotation(
    item: dict[str, Any], classes: dict[str, str] | None
) -> tuple[str, tuple[tuple[str, str], ...], str | None]:
    """Text, extra, and what is wrong, if anything."""
    label, template = item.get("label"), item.get("template")
    if not isinstance(label, str) or not label.strip():
        return "", (), f"{_shown(item, 'label')}, expected a sentence"
    if problem := text_problem(label):
        return "", (), f"a label that {problem}"
    if not isinstance(template, str) or not template.strip():
        return label, (), f"{_shown(item, 'template')}, expected a sentence with [something]"
    if problem := text_problem(template):
        return label, (), f"a template that {problem}"
    if classes is None:
        return label, (("template", template),), None
    index = classes.get(template.replace("[", "").replace("]", ""))
    if index is None:
        return label, (), f"{_shown(item, 'template')}, expected one of the {len(classes)} in labels.json"
    return label, (("class", index), ("template", template)), None


def _shown(item: dict[str, Any], field: str) -> str:
    if field not in item:
        return f"no {field!r}"
    text = repr(item[field])
    return f"the {field} {text if len(text) <= 60 else text[:57] + '...'}"


def _refs(entries: list[_Entry], videos: dict[str, str]) -> list[ClipRef]:
    """The clips in order of their keys; an id that is listed more than once becomes one clip with a problem."""
    counts = Counter(entry.identity for entry in entries)
    distinct = {entry.identity: entry for entry in reversed(entries)}  # the first of several
    keys = unique_keys(list(distinct), [entry.name for entry in distinct.values()])
    refs: list[ClipRef] = []
    for key, (identity, entry) in sorted(zip(keys, distinct.items(), strict=True), key=lambda pair: pair[0]):
        video = videos.get(entry.name) if entry.has_id else None
        problem = entry.problem
        if counts[identity] > 1:
            problem = f"the id {entry.name} is listed {counts[identity]} times (first in {entry.source}), expected once"
        elif problem is None and video is None:
            problem = f"the video {entry.name}.webm is missing; expected it in a folder below --root"
        refs.append(
            ClipRef(
                key=key,
                split=entry.split,
                text=entry.text,
                path=None if video is None else Path(video),
                index=len(refs),
                problem=problem,
                extra=entry.extra,
            )
        )
    return refs
