"""Copies the bytes of frames from mapped files into the arrays of a batch: what a batch costs, and little else."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from data_specs.arrays import Array
from pipeline.store.places import Pieces
from pipeline.store.threads import helpers, share

SHARED = 1 << 22
"""Bytes of an array from which several threads copy it: they have started and ended in less than the copy takes."""


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
    target, files, start, stop = _bytes(array), pieces.files, pieces.start, pieces.stop
    ends = list(accumulate(last - first for first, last in zip(start, stop, strict=True)))
    assert ends[-1] == array.nbytes, (ends[-1], array.nbytes)
    left = iter(range(len(files)))

    def work() -> None:
        for i in left:  # the threads share it: each takes the next one, and copies it without the GIL
            piece = np.frombuffer(files[i][start[i] : stop[i]], dtype=np.uint8)
            np.copyto(target[ends[i] - len(piece) : ends[i]], piece)

    share(work, threads)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
