"""Worker processes that end when they should: not at the user's Ctrl-C, and not after their parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """`workers` processes, spawned and not forked: the parent may hold threads, torch's for one, which do not survive.

    Ctrl-C reaches the whole process group; the parent decides what becomes of its workers.
    """
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot say goodbye: without this its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Undisturbed:
    """What `undisturbed` gives: Ctrl-C and SIGTERM are kept until the end of its block, or `lifted` lets them through.

    The second is kept in any case, so that it does not interrupt the clearing up after the first. The third raises
    KeyboardInterrupt in any case: clearing up takes too long, or the first went unheard, in a finaliser for one.
    """

    def __init__(self) -> None:
        self.kept = False
        """Whether one came, and has not been raised."""
        self._open = False
        self._count = 0

    def came(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self._count += 1
        if self._count > 2 or (self._open and self._count == 1):
            raise KeyboardInterrupt
        self.kept = True

    def raise_kept(self) -> None:
        """KeyboardInterrupt if one came."""
        if self.kept:
            self.kept = False
            raise KeyboardInterrupt

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Let the signals through while the block runs; one that came before ends it at its start."""
        try:
            self._open = True
            self.raise_kept()
            yield
        finally:
            self._open = False


@contextmanager
def undisturbed() -> Iterator[Undisturbed]:
    """Ctrl-C and SIGTERM wait for the end of the block, and then raise KeyboardInterrupt.

    For what leaves a store in between two states; in a thread other than the main one, which gets no signals, it does
    nothing.
    """
    guard = Undisturbed()
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, guard.came)
    try:
        yield guard
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    guard.raise_kept()
