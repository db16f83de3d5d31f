"""Plain copies of as many bytes as a batch has: what the readers of `cla bench store` are measured against."""

import itertools
import mmap
from collections.abc import Callable, Iterator

import numpy as np

from data_specs.arrays import Array
from pipeline.bench.readers import PAIRS, QUICK, Frames, Reader

SOURCE = 1 << 28
"""Least bytes that a source has: many times what the caches of one core hold."""


def copies(frames: Frames, mapped: Array) -> Iterator[Reader]:
    """One copy out of memory, into an array that is used again and into fresh pages; and out of a mapped file."""
    size = round(2 * PAIRS * frames.mean)
    source, target = np.ones(max(8 * size, SOURCE), np.uint8), np.empty(size, np.uint8)
    yield _copy("memcpy", source, lambda: target)
    # the C library would keep it when it is let go, and give the same pages again
    yield _copy("memcpy into fresh memory", source, lambda: np.frombuffer(mmap.mmap(-1, size), np.uint8))
    flat = mapped.reshape(-1).view(np.uint8)
    part = target[: min(size, len(flat))]
    yield _copy("memcpy from a mapped file", flat, lambda: part)


def _copy(label: str, source: Array, new: Callable[[], Array]) -> Reader:
    size = len(new())
    places = itertools.cycle(range(0, len(source) - size + 1, size))
    return Reader(
        label=label, read=lambda: np.copyto(new(), source[(at := next(places)) : at + size]), bytes=size, calls=QUICK
    )
