"""From rows of shards to packed tensors.

Shape legend: B frames of the batch, P points a frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.batches import BATCHES, FrameBatch, ImageBatch, PointBatch, batch_dtype, pack
from data_specs.records import exclusive_sum
from data_specs.shards import ARRAYS, EXTRA, VIEWS, VISION, offset_name
from pipeline.config import suggest
from pipeline.store.columns import view_names
from pipeline.store.decode import Unpacking, unpack_all
from pipeline.store.shard import ShardReader

COLUMNS = (*BATCHES, "state", "action", "is_pad")
"""What a batch can hold, beside `points/NAME`, `camera/NAME`, `extra/NAME`, `vision/NAME` and `views/NAME`."""

_MEMBERS = {
    family: [name for name in ARRAYS if name.startswith(f"{family}/") and not name.endswith("/offset")]
    for family in BATCHES
}

Place = tuple[ShardReader, int, int]
"""An open shard, a clip's row in it, a frame of the clip."""


def assemble(places: Sequence[Place], columns: Sequence[str], *, index: Array, time: Array) -> FrameBatch:
    """The named columns of the frames at `places`, packed. ValueError for a column that is unknown or not there."""
    values: dict[str, Any] = {"extra": {}, "vision": {}, "views": {}}
    for column in columns:
        prefix, _, name = column.partition("/")
        if column in BATCHES:
            values[column] = _family(places, column)
        elif column in _MEMBERS["points"] or column in _MEMBERS["camera"]:
            values["extra"] |= _unpacked(places, [column])
        elif column in COLUMNS:
            values[column] = torch.from_numpy(_rows(places, column))
        elif column.startswith((EXTRA, VISION)):
            values[prefix][name] = torch.from_numpy(_rows(places, column))
        elif column.startswith(VIEWS):
            values[prefix][name] = _pictures(places, column)
        else:
            raise ValueError(
                f"unknown column {column!r}.{suggest(column, COLUMNS)} There are: {', '.join(COLUMNS)}, points/NAME, "
                "camera/NAME, extra/NAME, vision/NAME, views/NAME"
            )
    return FrameBatch(index=torch.from_numpy(index), time=torch.from_numpy(time), **values)


def columns_of(arrays: Sequence[str]) -> tuple[str, ...]:
    """The columns that a shard with these arrays can give."""
    named = [name for name in COLUMNS if any(a == name or a.startswith(f"{name}/") for a in arrays)]
    named += [VIEWS + name for name in view_names(arrays)]
    return (*named, *(name for name in arrays if name.startswith((EXTRA, VISION))))


def _pictures(places: Sequence[Place], column: str) -> ImageBatch:
    name = f"{column}/data"
    for reader, _, _ in places:
        _need(reader, name)
    parts = [reader.frame(name, clip, frame) for reader, clip, frame in places]
    offset = exclusive_sum(np.array([len(part) for part in parts], dtype=np.int64))
    return ImageBatch(data=torch.from_numpy(_join(parts, name)), offset=torch.from_numpy(offset))


def _family(places: Sequence[Place], family: str) -> Any:
    if family == "points":
        return PointBatch(
            **{name.removeprefix("points/"): t for name, t in _unpacked(places, _MEMBERS[family]).items()}
        )
    arrays = {}
    for name in _MEMBERS[family]:
        parts = [reader.frame(name, clip, frame) for reader, clip, frame in places]
        short = name.removeprefix(f"{family}/")
        arrays[short] = _join(parts, name)
        if offset_name(name) is not None:
            arrays["offset"] = exclusive_sum(np.array([len(part) for part in parts], dtype=np.int64))
    return pack(family, arrays)


def _unpacked(places: Sequence[Place], names: Sequence[str]) -> dict[str, Tensor]:
    """Arrays with a row a frame that may be compressed, in the dtypes of a batch."""
    if not places:
        raise ValueError(f"a batch of no frames has no {names[0]!r}: give at least one frame")
    of_clip: dict[tuple[int, int], list[int]] = {}
    for at, (reader, clip, _) in enumerate(places):
        of_clip.setdefault((id(reader), clip), []).append(at)
    out, tasks = {}, []
    for name in names:
        for reader, _, _ in places:
            _need(reader, name)
        reader, clip, _ = places[0]
        out[name] = np.empty((len(places), *reader.row_shape(name, clip)), dtype=batch_dtype(name))
        for rows in of_clip.values():
            reader, clip, _ = places[rows[0]]
            frames = [places[at][2] for at in rows]
            tasks.append(Unpacking(reader, name, clip, frames, out[name], rows))
    unpack_all(tasks)
    return {name: torch.from_numpy(array) for name, array in out.items()}


def _rows(places: Sequence[Place], name: str) -> Array:
    for reader, clip, _ in places:
        _need(reader, name)
        if name.startswith(EXTRA) and reader.length(name, clip) != int(reader.lengths[clip]):
            raise ValueError(f"{name!r} has no row for each frame: read it with store[i].extra")
    return _join([reader.rows(name, clip, frame, frame + 1) for reader, clip, frame in places], name)


def _need(reader: ShardReader, name: str) -> None:
    if name not in reader.arrays:
        raise ValueError(f"the store has no {name!r}: shard {reader.name} holds {', '.join(reader.arrays)}")


def _join(parts: Sequence[Array], name: str) -> Array:
    if not parts:
        raise ValueError(f"a batch of no frames has no {name!r}: give at least one frame")
    return np.concatenate(parts)
