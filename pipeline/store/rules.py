"""The rules of the schema beyond dtypes and shapes: what must hold within a clip for a reader to trust it."""

from collections.abc import Iterator, Mapping, MutableMapping

import numpy as np

from data_specs.arrays import Array
from data_specs.records import ClipRecord
from data_specs.shards import ARRAYS, EXTRA, GRID, VIEWS, VISION, array_spec, offset_name
from pipeline.store.columns import record_arrays


def check_record(record: ClipRecord, sizes: Mapping[str, int]) -> None:
    """Raise ValueError, in a sentence that names the clip and the array, unless the record obeys the schema.

    Args:
        record: a clip about to be stored.
        sizes: of the manifest: C, P, W, and S and A where the store has robot data.
    """
    for array, problem in record_problems(record, sizes):
        raise ValueError(f"Clip {record.key!r} does not fit the store: {array}: {problem}")


def record_problems(record: ClipRecord, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """(array, problem) for every rule that is broken. Rules that rest on a broken one are skipped."""
    arrays = record_arrays(record)
    broken = False
    if not record.key or any(not (c.isascii() and (c.isalnum() or c in "_/-")) for c in record.key):
        yield "key", f"{record.key!r} may hold only letters, digits, '_', '-' and '/' (see safe_key)"
    if len(record) == 0:
        yield "time", "the clip has no frames"
        return
    for misfit in _misfits(arrays, dict(sizes), len(record)):
        broken = True
        yield misfit
    tokens = record.tokens
    if (tokens.feat.dtype == np.int8) != (tokens.scale is not None):
        yield "tokens/scale", f"features are {tokens.feat.dtype}: only int8 has scales, and always"
        broken = True
    elif tokens.scale is not None and bool((tokens.scale < 0).any()):
        yield "tokens/scale", "a negative scale"
    if broken:
        return
    cut = {offset: len(array) for name, array in arrays.items() if (offset := offset_name(name)) is not None}
    for name, ends in cut.items():
        found = offset_problem(arrays[name], ends)
        if found:
            broken = True
            yield name, found
        elif name.startswith(VIEWS) and not bool(np.all(np.diff(arrays[name]) > 0)):
            yield name, f"frame {int(np.argmin(np.diff(arrays[name])))}: no image"
    for name, array in arrays.items():
        if array.dtype.kind == "f" and (count := int(np.count_nonzero(~np.isfinite(array)))):
            yield name, f"{count} of {array.size} values are not finite"
    if len(record) > 1 and not bool(np.all(np.diff(record.time) > 0)):
        yield "time", "the times of the frames do not increase"
    if not broken:
        yield from _frame_problems(record, sizes["W"])


def _misfits(arrays: Mapping[str, Array], sizes: MutableMapping[str, int], frames: int) -> Iterator[tuple[str, str]]:
    sizes["F"] = frames
    for name, spec in ARRAYS.items():
        if name in arrays:
            try:
                spec.check(arrays[name], sizes)
            except ValueError as error:
                yield name, str(error)
    for name, array in arrays.items():
        if name.startswith((VIEWS, VISION)):
            named = array_spec(name)
            try:
                if named is None:
                    raise ValueError("a name may hold only letters, digits, '_' and '-'")
                named.check(array, {"F": frames})
            except ValueError as error:
                yield name, str(error)
        if name.startswith(EXTRA) and (array.ndim == 0 or array.dtype.kind not in "fiub"):
            yield name, f"{array.dtype} of shape {array.shape}, expected numbers with at least one dimension"


def offset_problem(offset: Array, rows: int) -> str | None:
    """What is wrong with an offset array over `rows` rows, or None."""
    if len(offset) == 0 or int(offset[0]) != 0:
        return f"offsets start at {offset[:1].tolist()}, expected 0"
    falls = offset[1:] < offset[:-1]  # not by differences, which wrap around
    if bool(falls.any()):
        return f"offsets fall at entry {int(np.argmax(falls)) + 1}"
    if int(offset[-1]) != rows:
        return f"offsets end at {int(offset[-1])}, the arrays have {rows} rows"
    return None


def _frame_problems(record: ClipRecord, width: int) -> Iterator[tuple[str, str]]:
    for i in range(len(record)):
        for array, problem in _one_frame(record, i, width):
            yield array, f"frame {i}: {problem}"


def _one_frame(record: ClipRecord, i: int, width: int) -> Iterator[tuple[str, str]]:
    """Counts, order and agreement of tokens, points and cells in frame i."""
    rows = slice(int(record.tokens.offset[i]), int(record.tokens.offset[i + 1]))
    count = record.tokens.count[rows].astype(np.int64)
    slots = record.points.pixel.shape[1]
    kept = int(count.sum())
    if len(count) == 0:
        yield "tokens/offset", "no tokens"
        return
    if count.min() < 1:
        yield "tokens/count", "a token without points"
        return
    if record.rgb.offset[i] == record.rgb.offset[i + 1]:
        yield "rgb/offset", "no image"
    for name, low_high in (("range", record.camera.range[i]), ("conf_range", record.camera.conf_range[i])):
        if low_high[0] > low_high[1]:
            yield f"camera/{name}", f"least {low_high[0]} is above greatest {low_high[1]}"
    if record.camera.normalisation[i, 3] <= 0:
        yield "camera/normalisation", f"scale {record.camera.normalisation[i, 3]} is not positive"
    if slots == 0:
        yield from _cells_without_points(record, i, count)
        return
    if kept > slots:
        yield "tokens/count", f"counts sum to {kept} points, there are {slots} slots"
        return
    for name in ("pixel", "rgb", "depth", "conf"):
        if getattr(record.points, name)[i, kept:].any():
            yield f"points/{name}", f"slots past the frame's {kept} points are not zero"
    pixel = record.points.pixel[i, :kept].astype(np.int64)
    token = np.repeat(np.arange(len(count)), count)
    if pixel.max() >= width * width:
        yield "points/pixel", f"pixel {pixel.max()} is outside of {width}x{width}"
        return
    if bool(np.any(np.diff(token * (width * width) + pixel) <= 0)):
        yield "points/pixel", "points are not sorted by (token, pixel), each pixel once"
    yield from _cell_problems(record, i, pixel, token, len(count), width)


def _cells_without_points(record: ClipRecord, i: int, count: Array) -> Iterator[tuple[str, str]]:
    """What holds where a store keeps no points: cells in order, and each token's points are those of its cells."""
    rows = slice(int(record.cells.offset[i]), int(record.cells.offset[i + 1]))
    cell, token = record.cells.cell[rows].astype(np.int64), record.cells.token[rows].astype(np.int64)
    if len(cell) == 0:
        yield "cells/offset", "no cells"
    elif cell.max() >= GRID * GRID:
        yield "cells/cell", f"cell {cell.max()} is outside of {GRID}x{GRID}"
    elif token.max() >= len(count):
        yield "cells/token", f"token {token.max()} is outside of the frame's {len(count)}"
    elif bool(np.any(np.diff(cell * len(count) + token) <= 0)):
        yield "cells/cell", "triplets are not sorted by (cell, token), each pair once"
    elif not np.array_equal(np.bincount(token, record.cells.count[rows], len(count)).astype(np.int64), count):
        yield "cells/count", "counts disagree with those of the tokens"


def _cell_problems(
    record: ClipRecord, i: int, pixel: Array, token: Array, tokens: int, width: int
) -> Iterator[tuple[str, str]]:
    rows = slice(int(record.cells.offset[i]), int(record.cells.offset[i + 1]))
    cell, cell_token = record.cells.cell[rows].astype(np.int64), record.cells.token[rows].astype(np.int64)
    if len(cell) == 0:
        yield "cells/offset", "no cells"
        return
    if cell.max() >= GRID * GRID:
        yield "cells/cell", f"cell {cell.max()} is outside of {GRID}x{GRID}"
        return
    if cell_token.max() >= tokens:
        yield "cells/token", f"token {cell_token.max()} is outside of the frame's {tokens}"
        return
    pair = cell * tokens + cell_token
    if bool(np.any(np.diff(pair) <= 0)):
        yield "cells/cell", "triplets are not sorted by (cell, token), each pair once"
        return
    row, column = np.divmod(pixel, width)
    expected, count = np.unique(
        ((row * GRID // width) * GRID + column * GRID // width) * tokens + token, return_counts=True
    )
    if not np.array_equal(pair, expected):
        at = "cells/token" if np.array_equal(np.unique(cell), np.unique(expected // tokens)) else "cells/cell"
        yield at, "triplets disagree with the cells and tokens of the points"
    elif not np.array_equal(record.cells.count[rows], count):
        yield "cells/count", "counts disagree with the points"
