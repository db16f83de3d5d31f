"""From rows of shards to packed tensors: the bytes of every frame are copied once, from the file to the batch."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.batches import BATCHES, FrameBatch, batch_dtype
from data_specs.quantise import float_features
from data_specs.records import exclusive_sum
from data_specs.shards import ARRAYS, EXTRA, VIEWS, VISION, offset_name
from pipeline.config import suggest
from pipeline.store.columns import view_names
from pipeline.store.copying import copy_all, join
from pipeline.store.decode import Unpacking, unpack_all
from pipeline.store.memory import new_tensor
from pipeline.store.places import Pieces, Places

COLUMNS = (*BATCHES, "state", "action", "is_pad")
"""What a batch can hold, beside `points/NAME`, `camera/NAME`, `extra/NAME`, `vision/NAME` and `views/NAME`."""

_MEMBERS = {
    family: tuple(
        name
        for name, spec in ARRAYS.items()
        if name.startswith(f"{family}/") and not name.endswith("/offset") and not spec.optional
    )
    for family in BATCHES
}
_FEAT, _SCALE = "tokens/feat", "tokens/scale"
_ALONE = (*_MEMBERS["points"], *_MEMBERS["camera"])


def assemble(
    places: Places, columns: Sequence[str], *, index: Array, time: Array, pin_memory: bool = False
) -> FrameBatch:
    """The named columns of the frames at `places`, packed. ValueError for a column that is unknown or not there."""
    if len(places) == 0:
        raise ValueError("a batch of no frames cannot be packed: give at least one frame")
    tensors = _packed(places, *_arrays_of_all(tuple(columns)), pin_memory)
    values: dict[str, Any] = {"extra": {}, "vision": {}, "views": {}}
    for column in columns:
        kind, _, rest = column.partition("/")
        if column in BATCHES:
            values[column] = _family(column, column, tensors)
        elif column in _ALONE:
            values["extra"][column] = tensors[column]
        elif kind == "views":
            values[kind][rest] = _family("rgb", column, tensors)
        elif rest:
            values[kind][rest] = tensors[column]
        else:
            values[column] = tensors[column]
    return FrameBatch(index=torch.from_numpy(index), time=torch.from_numpy(time), **values)


def arrays_of(column: str) -> tuple[str, ...]:
    """The arrays of a shard that a column is made of. ValueError for a column that cannot be."""
    if column in BATCHES:
        return _MEMBERS[column]
    if column in COLUMNS or column in _ALONE or column.startswith((EXTRA, VISION)):
        return (column,)
    if column.startswith(VIEWS):
        return (f"{column}/data",)
    raise ValueError(
        f"unknown column {column!r}.{suggest(column, COLUMNS)} There are: {', '.join(COLUMNS)}, points/NAME, "
        "camera/NAME, extra/NAME, vision/NAME, views/NAME"
    )


@cache
def _arrays_of_all(columns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What columns are made of: arrays that are stored as they are, and arrays of points."""
    names = dict.fromkeys(name for column in columns for name in arrays_of(column))
    points = _MEMBERS["points"]
    return tuple(name for name in names if name not in points), tuple(name for name in names if name in points)


def columns_of(arrays: Sequence[str]) -> tuple[str, ...]:
    """The columns that a shard with these arrays can give."""
    named = [name for name in COLUMNS if any(a == name or a.startswith(f"{name}/") for a in arrays)]
    named += [VIEWS + name for name in view_names(arrays)]
    return (*named, *(name for name in arrays if name.startswith((EXTRA, VISION))))


def _family(family: str, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """The batch of arrays `prefix/NAME`."""
    start = f"{prefix}/"
    return BATCHES[family](**{n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)})


def _packed(places: Places, stored: Sequence[str], points: Sequence[str], pin_memory: bool) -> dict[str, Tensor]:
    """Arrays by name, and the offsets [B+1] of the ragged ones."""
    tensors: dict[str, Tensor] = {}
    ends: dict[str, Array] = {}
    copies: list[tuple[Pieces, Array]] = []
    for name, pieces in zip(stored, places.pieces(stored), strict=True):
        rows = len(places)
        if (offset := offset_name(name)) is not None:
            assert pieces.lengths is not None, name
            if offset not in ends:
                ends[offset] = exclusive_sum(pieces.lengths)
                tensors[offset] = torch.from_numpy(ends[offset])
            rows = int(ends[offset][-1])
        shape = (rows, *pieces.kind.shape)
        joined = None if pin_memory else join(pieces, shape)
        if joined is None:
            tensors[name], array = new_tensor(shape, pieces.kind.dtype, pin=pin_memory)
            copies.append((pieces, array))
        else:
            tensors[name] = torch.from_numpy(joined)
    scales = _scales(places, tensors.get(_FEAT), pin_memory, copies)
    copy_all(copies)
    if scales is not None:
        room, _ = new_tensor(tuple(tensors[_FEAT].shape), np.dtype(np.float16), pin=pin_memory)
        tensors[_FEAT] = float_features(tensors[_FEAT], scales, tensors["tokens/offset"], room)
    tasks: list[Unpacking] = []
    for name in points:
        shape = (len(places), *places.row_shape(name))
        if 0 in shape:
            raise ValueError(f"the store keeps no points (store.points=false), and so has no {name!r}")
        tensors[name], array = new_tensor(shape, batch_dtype(name), pin=pin_memory)
        tasks += places.unpackings(name, array)
    if tasks:
        unpack_all(tasks)
    return tensors


def _scales(places: Places, feat: Tensor | None, pin_memory: bool, copies: list[tuple[Pieces, Array]]) -> Tensor | None:
    """Room for the scales [B,C] of features that are int8, to be copied with the rest; None for others."""
    if feat is None or feat.dtype != torch.int8:
        return None
    (pieces,) = places.pieces([_SCALE])
    scales, array = new_tensor((len(places), *pieces.kind.shape), pieces.kind.dtype, pin=pin_memory)
    copies.append((pieces, array))
    return scales
