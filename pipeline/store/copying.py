"""Copies the bytes of frames from mapped files into the arrays of a batch: what a batch costs, and little else."""

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
    if sum(pieces.stop) - sum(pieces.start) >= SHORT * len(pieces.files):
        return None
    places = zip(pieces.files, pieces.start, pieces.stop, strict=True)
    # it fetches the pieces from memory while it goes on to the next, which a loop of Python's does not
    data = bytearray().join([file[start:stop] for file, start, stop in places])
    return np.ndarray(shape, pieces.kind.dtype, data)


def copy_all(arrays: Sequence[tuple[Pieces, Array]]) -> None:
    """Fill each array with its pieces, end to end."""
    threads = helpers()
    # what is small first: a large copy sweeps Python's own objects out of the cache
    for pieces, array in sorted(arrays, key=lambda pair: pair[1].nbytes):
        # files elsewhere are read by requests, which share blocks
        if threads > 0 and array.nbytes >= SHARED and isinstance(pieces.files[0], memoryview):
            _copy_together(pieces, array, threads)
        else:
            _copy(pieces, array)


def _copy(pieces: Pieces, array: Array) -> None:
    target = _bytes(array).data
    at = 0
    # a memoryview's slices are the cheapest that Python has: 0.15 us a piece
    for file, start, stop in zip(pieces.files, pieces.start, pieces.stop, strict=True):
        end = at + stop - start
        target[at:end] = file[start:stop]
        at = end
    assert at == array.nbytes, (at, array.nbytes)


def _copy_together(pieces: Pieces, array: Array, threads: int) -> None:
    target, at = _bytes(array), 0
    parts = []
    for file, start, stop in zip(pieces.files, pieces.start, pieces.stop, strict=True):
        length = stop - start
        parts.append((target[at : at + length], np.frombuffer(file, np.uint8, length, start)))  # type: ignore[call-overload]
        at += length
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
