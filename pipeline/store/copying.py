"""Copies the bytes of frames from mapped files into the arrays of a batch: what a batch costs, and little else."""

import math
from collections.abc import Sequence

import numpy as np

from data_specs.arrays import Array
from pipeline.store.places import Pieces
from pipeline.store.threads import helpers, share

SHORT = 1 << 13
"""Mean bytes of the pieces under which an array is joined by one call instead of copied piece by piece."""

SHARED = 1 << 22
"""Bytes of an array from which several threads copy it: they have started and ended in less than the copy takes."""


def join(pieces: Pieces, shape: tuple[int, ...]) -> Array | None:
    """A new array of short pieces, end to end; None where they are long."""
    size = math.prod(shape) * pieces.kind.dtype.itemsize
    if size >= SHORT * len(pieces.parts):
        return None
    # it fetches the pieces from memory while it goes on to the next, which a loop of Python's does not
    data = bytearray().join(pieces.parts)
    assert len(data) == size, (len(data), size)
    return np.ndarray(shape, pieces.kind.dtype, data)


def copy_all(arrays: Sequence[tuple[Pieces, Array]]) -> None:
    """Fill each array with its pieces, end to end."""
    # what is small first: a large copy sweeps Python's own objects out of the cache
    for pieces, array in sorted(arrays, key=lambda pair: pair[1].nbytes):
        if array.nbytes >= SHARED and (threads := helpers()) > 0:
            _copy_together(pieces, array, threads)
        else:
            _copy(pieces, array)


def _copy(pieces: Pieces, array: Array) -> None:
    target = _bytes(array).data
    at = 0
    for part in pieces.parts:
        end = at + len(part)
        target[at:end] = part
        at = end
    assert at == array.nbytes, (at, array.nbytes)


def _copy_together(pieces: Pieces, array: Array, threads: int) -> None:
    target, at = _bytes(array), 0
    parts = []
    for part in pieces.parts:
        end = at + len(part)
        if len(part):  # numpy makes no array of nothing
            parts.append((target[at:end], np.frombuffer(part, np.uint8)))
        at = end
    assert at == array.nbytes, (at, array.nbytes)
    left = iter(parts)

    def work() -> None:
        # the threads share it: each takes the next one, and copies it without the GIL; what else there is to do has
        # been done before, for a thread that waits for the GIL sleeps
        for to, piece in left:
            np.copyto(to, piece)

    share(work, threads)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
