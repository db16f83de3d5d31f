"""Work of a batch that several threads share: what releases the GIL, as codecs and large copies do."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

MOST = 16


def helpers() -> int:
    """Threads beside the calling one: as many as torch has in this process, none in a worker of a DataLoader."""
    return min(torch.get_num_threads(), MOST) - 1


def share(work: Callable[[], None], threads: int) -> None:
    """Call `work` in this thread and in others, all of which take from what there is to do until nothing is left.

    Raises what any of them raises, when all have ended.
    """
    if threads <= 0:
        work()
        return
    running = [_pool().submit(work) for _ in range(threads)]
    try:
        work()
    finally:
        # on a busy machine a thread may not even have begun when everything is done: it need not
        errors = [future.exception() for future in running if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


_POOLS: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """The threads of this process; those of a parent do not survive a fork."""
    process = os.getpid()
    if process not in _POOLS:
        _POOLS.clear()
        _POOLS[process] = ThreadPoolExecutor(MOST, thread_name_prefix="cla-batch")
    return _POOLS[process]
