"""HDF5 files of robot episodes, read with what a damaged, foreign or hostile one needs: a sentence, never a traceback.

What a file claims is looked at before anything of that size is allocated, and nothing that it names is opened: HDF5 has
links to other files, storage in other files, and datasets put together from others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from data_specs.arrays import Array
from data_specs.records import BadClip
from pipeline.foreign import UNREADABLE, shortened
from pipeline.foreign_images import MAX_PIXELS
from pipeline.sources.hdf5_pieces import storage_problem, unpacking_problem

if TYPE_CHECKING:
    import h5py

T = TypeVar("T")

HDF5_SUFFIXES = (".hdf5", ".h5")

MAX_NUMBERS = 1 << 26
"""Of an array of state or action: 64 dimensions of the longest episode that is read."""

MAX_ATTRIBUTE = 1 << 20
"""Bytes of an attribute: LIBERO's instructions have some hundred."""

_NAMED = 20
"""Members of a group that a message lists."""


@contextmanager
def open_hdf5(key: str, path: Path) -> Iterator["h5py.File"]:
    """The file `path`, open for reading. BadClip if it is missing, no HDF5, or damaged where it is read."""
    import h5py

    if not path.is_file():
        raise BadClip(key, f"{path} is missing, expected an HDF5 file; copy it again")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # as h5py reports damage, depending on where it is
        raise damaged(key, path, error) from error


def damaged(key: str, path: Path | str, error: Exception) -> BadClip:
    """The sentence for what h5py raises over a file."""
    return BadClip(
        key,
        f"{path} cannot be read as HDF5 ({shortened(error)}); it is truncated or damaged: copy or download it again",
    )


def _asked(key: str, path: Path | str, ask: Callable[[], T]) -> T:
    """What a call into h5py gives; BadClip for whatever it raises."""
    try:
        return ask()
    except UNREADABLE as error:
        raise damaged(key, path, error) from error


def names_in(key: str, group: "h5py.Group") -> list[str]:
    """The names in a group, sorted. BadClip where one is no text: h5py gives it as bytes, and the file is damaged."""
    names = _asked(key, group.file.filename, lambda: list(group))
    for name in names:
        if not isinstance(name, str):
            raise BadClip(key, f"{group.file.filename}: a name in {group.name!r} is no UTF-8 text ({name[:40]!r})")
    return sorted(names)


def member(key: str, group: "h5py.Group", name: str, kind: type[Any], *, holder: str) -> Any:
    """The group or dataset `name` (with slashes) in `group`, which messages call `holder`.

    BadClip if it is missing, of another kind, or kept in another file: a file that came from somewhere must not open
    others, so that no link but a hard one is followed.
    """
    import h5py

    path = Path(group.file.filename)
    found: Any = group
    for part in name.split("/"):
        found = _child(key, path, group, found, part, f"{name!r} of {holder}", holder)
    if not isinstance(found, kind):
        raise BadClip(key, f"{path}: {name!r} of {holder} is a {type(found).__name__}, expected a {kind.__name__}")
    if isinstance(found, h5py.Dataset):
        problem = _asked(key, path, lambda: storage_problem(found))
        if problem:
            raise BadClip(key, f"{path}: {name!r} of {holder} {problem}")
    return found


def _child(key: str, path: Path, group: "h5py.Group", parent: Any, part: str, name: str, holder: str) -> Any:
    """What `parent`, on the way from `group` to `name`, has under the name `part`."""
    import h5py

    link = None
    if isinstance(parent, h5py.Group):
        link = _asked(key, path, lambda: parent.get(part, getlink=True))
    if link is None:
        names = names_in(key, group)
        listed = ", ".join(shortened(n, 60) for n in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise BadClip(
            key,
            f"{path}: {holder} has no {name.removesuffix(f' of {holder}')} (it has: {listed or 'nothing'}); this is"
            " another layout, or the recording was cut short",
        )
    if not isinstance(link, h5py.HardLink):
        raise BadClip(
            key, f"{path}: {name} is a link, perhaps to what is kept in another file; expected it in this one"
        )
    return _asked(key, path, lambda: parent[part])


def check_pictures(key: str, data: "h5py.Dataset", rows: int, *, name: str) -> None:
    """BadClip unless `data` holds `rows` pictures u1 [h,w,3] of a sane size."""
    path = data.file.filename
    if data.ndim != 4 or data.shape[3] != 3 or data.dtype != np.uint8:
        raise BadClip(key, f"{path}: {name} is {data.dtype} {data.shape}, expected uint8 (steps, height, width, 3)")
    if not 0 < data.shape[1] * data.shape[2] <= MAX_PIXELS:
        raise BadClip(key, f"{path}: {name} has {data.shape[1]} x {data.shape[2]} pixels, expected 1 to {MAX_PIXELS}")
    if data.shape[0] != rows:
        raise BadClip(
            key, f"{path}: {name} has {data.shape[0]} pictures, expected {rows} as there are actions; record it again"
        )


def row(key: str, data: "h5py.Dataset", index: int) -> Array:
    """Row `index` of a dataset that has been checked."""
    _check_unpacking(key, data, index)
    return _asked(key, data.file.filename, lambda: np.asarray(data[index]))


def _check_unpacking(key: str, data: "h5py.Dataset", index: int | None) -> None:
    problem = _asked(key, data.file.filename, lambda: unpacking_problem(data, index))
    if problem:
        raise BadClip(key, f"{data.file.filename}: {data.name} {problem}; record the episode again")


def text_attribute(key: str, item: "h5py.Group", name: str, *, holder: str) -> str:
    """The attribute `name` of a group as text; BadClip if it is missing or no text."""
    value = attribute(key, item, name)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        path = item.file.filename
        raise BadClip(key, f"{path}: {holder} has no attribute {name!r} with a text; this is another layout")
    return value


def attribute(key: str, item: "h5py.Group", name: str) -> Any:
    """The attribute `name`, one value of whatever kind; None where there is none. BadClip for a damaged or long one."""

    def ask() -> Any:
        if name not in item.attrs:
            return None
        about = item.attrs.get_id(name)
        size = math.prod(about.shape or ()) * about.dtype.itemsize
        if size > MAX_ATTRIBUTE:
            raise ValueError(f"the attribute {name!r} has {size:,} bytes, at most {MAX_ATTRIBUTE:,} are read")
        return item.attrs[name]

    return _asked(key, item.file.filename, ask)


def flag(key: str, item: "h5py.Group", name: str) -> bool | None:
    """The attribute `name` as true or false; None where there is none. BadClip for one that is neither."""
    value = attribute(key, item, name)
    if value is None:
        return None
    if not isinstance(value, bool | int | np.bool_ | np.integer):
        raise BadClip(
            key, f"{item.file.filename}: the attribute {name!r} is {shortened(repr(value), 60)}, expected yes or no"
        )
    return bool(value)


def numbers(key: str, data: "h5py.Dataset", *, name: str) -> Array:
    """All of a dataset that has been checked (`member`). BadClip for one that claims more than is read."""
    shape: Sequence[int] = data.shape
    if math.prod(shape) > MAX_NUMBERS:
        raise BadClip(
            key, f"{data.file.filename}: {name} claims {tuple(shape)} numbers, expected at most {MAX_NUMBERS:,}"
        )
    _check_unpacking(key, data, None)
    return _asked(key, data.file.filename, lambda: np.asarray(data[()]))
