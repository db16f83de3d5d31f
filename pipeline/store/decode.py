"""Decompresses frames in threads: the codecs of both formats release the GIL."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data_specs.arrays import Array

if TYPE_CHECKING:
    from pipeline.store.shard import ShardReader

MOST_THREADS = 16


@dataclass(frozen=True)
class Unpacking:
    """Frames `frames` of a clip's array, to be written to `out[rows]`."""

    reader: "ShardReader"
    name: str
    clip: int
    frames: list[int]
    out: Array
    rows: list[int]


def unpack_all(tasks: Sequence[Unpacking]) -> None:
    """Do the tasks, with as many threads as torch has in this process (one in a DataLoader's worker).

    Raises the ShardError of a frame that cannot be decompressed.
    """
    left = iter(tasks)
    threads = min(torch.get_num_threads(), len(tasks), MOST_THREADS)
    if threads <= 1:
        _drain(left)
        return
    pool = _pool()
    running = [pool.submit(_drain, left) for _ in range(threads)]
    for future in running:
        future.result()


def _drain(tasks: Iterator[Unpacking]) -> None:
    for task in tasks:  # shared by the threads: each takes the next one
        task.reader.unpack(task.name, task.clip, task.frames, task.out, task.rows)


_POOLS: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """The threads of this process; those of a parent do not survive a fork."""
    process = os.getpid()
    if process not in _POOLS:
        _POOLS.clear()
        _POOLS[process] = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="cla-unpack")
    return _POOLS[process]
