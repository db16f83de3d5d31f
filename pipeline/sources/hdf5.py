"""HDF5 files of robot episodes, read with what a damaged or foreign one needs: a sentence and never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import BadClip
from pipeline.sources.decode import MAX_PIXELS

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".hdf5", ".h5")


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
        raise BadClip(
            key, f"{path} cannot be read as HDF5 ({error}); it is truncated or damaged: copy or download it again"
        ) from error


def member(key: str, group: "h5py.Group", name: str, kind: type[Any], *, holder: str) -> Any:
    """The group or dataset `name` (with slashes) in `group`, which messages call `holder`.

    BadClip if it is missing, of another kind, or kept in another file: a file that came from somewhere must not open
    others.
    """
    path = Path(group.file.filename)
    found = group.get(name) if name in group else None
    if found is None:
        raise BadClip(
            key,
            f"{path}: {holder} has no {name!r} (it has: {', '.join(sorted(group)) or 'nothing'}); this is another"
            " layout, or the recording was cut short",
        )
    if not isinstance(found, kind):
        raise BadClip(key, f"{path}: {name!r} of {holder} is a {type(found).__name__}, expected a {kind.__name__}")
    elsewhere = Path(found.file.filename) != path
    if elsewhere or (hasattr(found, "is_virtual") and (found.is_virtual or found.external)):
        raise BadClip(key, f"{path}: {name!r} of {holder} is kept in another file, expected it in this one")
    return found


def check_pictures(key: str, data: "h5py.Dataset", rows: int, *, name: str) -> None:
    """BadClip unless `data` holds `rows` pictures u1 [h,w,3] of a sane size."""
    path = data.file.filename
    if data.ndim != 4 or data.shape[3] != 3 or data.dtype != np.uint8:
        raise BadClip(key, f"{path}: {name} is {data.dtype} {data.shape}, expected uint8 (steps, height, width, 3)")
    if not 0 < data.shape[1] * data.shape[2] <= MAX_PIXELS:
        raise BadClip(key, f"{path}: {name} has {data.shape[1]} x {data.shape[2]} pixels, expected 1 to {MAX_PIXELS}")
    if len(data) != rows:
        raise BadClip(
            key, f"{path}: {name} has {len(data)} pictures, expected {rows} as there are actions; record it again"
        )


def text_attribute(key: str, item: "h5py.Group", name: str, *, holder: str) -> str:
    """The attribute `name` of a group as text; BadClip if it is missing or no text."""
    value = item.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        path = item.file.filename
        raise BadClip(key, f"{path}: {holder} has no attribute {name!r} with a text; this is another layout")
    return value


def numbers(data: "h5py.Dataset") -> Array:
    """All of a dataset."""
    values: Array = data[()]
    return values
