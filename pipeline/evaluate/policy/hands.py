"""The processes that hold the slots: spawned, watched, and ended whatever happens.

A round sends every process its commands and waits for all reports: what a round does depends on the commands only, not
on how many processes there are or which is faster.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from pipeline.config import FailedError
from pipeline.evaluate.policy.slots import Seconds, Slots, SlotsSetup, by_process
from pipeline.evaluate.policy.trials import Command, Report
from pipeline.processes import worker_pool

ROUND_LIMIT_S = 900.0
"""Seconds after which a round counts as hung: far more than any takes."""

PATIENCE_S = 10.0
"""Seconds that processes have to end by themselves."""


class Hands(Protocol):
    """Carries commands out."""

    seconds: Seconds

    def round(self, commands: Sequence[Command]) -> list[Report]:
        """Carry out one command a slot; the reports by slot, in the order of the commands."""

    def close(self) -> None:
        """End the processes."""


class LocalHands:
    """All slots in this process."""

    def __init__(self, setup: SlotsSetup) -> None:
        self.seconds = Seconds()
        self._slots = Slots(setup)

    def round(self, commands: Sequence[Command]) -> list[Report]:
        """Carry out one command a slot."""
        reports, seconds = self._slots.run(commands)
        self.seconds.add(seconds)
        return reports

    def close(self) -> None:
        """Close the environments."""
        self._slots.close()


class ProcessHands:
    """Slots in `processes` processes, a pool of one for each so that a slot stays where it is."""

    def __init__(
        self, setup: SlotsSetup, processes: int, *, limit_s: float = ROUND_LIMIT_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.seconds = Seconds()
        self._setup, self._limit, self._patience = setup, limit_s, patience_s
        self._before = set(multiprocessing.active_children())
        self._pools: list[ProcessPoolExecutor] = [worker_pool(1) for _ in range(processes)]

    def round(self, commands: Sequence[Command]) -> list[Report]:
        """Carry out one command a slot. FailedError when a process dies or hangs."""
        shares = by_process(commands, len(self._pools))
        try:
            futures = [
                pool.submit(_run, self._setup, share) for pool, share in zip(self._pools, shares, strict=True) if share
            ]
            replies = self._gather(futures)
        except BrokenProcessPool:
            raise FailedError(
                "A process of the simulator died, perhaps for lack of memory: judge again with fewer --workers."
            ) from None
        reports = {report.slot: report for reply, _ in replies for report in reply}
        for _, seconds in replies:
            self.seconds.add(seconds)
        return [reports[command.slot] for command in commands]

    def close(self) -> None:
        """End the processes; one that does not answer is killed."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        ours = [child for child in multiprocessing.active_children() if child not in self._before]
        _end(ours, self._patience)

    def _gather(self, futures: Sequence["Future[Any]"]) -> list[tuple[list[Report], Seconds]]:
        done, waiting = wait(futures, timeout=self._limit)
        for future in done:
            if future.exception() is not None:  # before a word on those that wait: it may be why they do
                future.result()
        if waiting:
            raise FailedError(
                f"A process of the simulator has not answered for {self._limit:.0f} s and was ended: judge again with "
                "fewer --workers, or with another MUJOCO_GL where it draws with OpenGL."
            )
        return [future.result() for future in futures]


def _end(processes: Sequence[BaseProcess], patience_s: float) -> None:
    """Wait for processes that were told to end, and kill those that do not."""
    until = time.monotonic() + patience_s
    for process in processes:
        if not _ended(process, until):
            process.kill()
            _ended(process, time.monotonic() + PATIENCE_S)


def _ended(process: BaseProcess, until: float) -> bool:
    """Wait until `process` is known to have ended, or the time `until`.

    The pool's own thread waits for it too. Where that thread is the one that collects the exit code, `join` here comes
    back at once and without it, until the thread has had its turn: ask again.
    """
    while process.is_alive():
        left = until - time.monotonic()
        if left <= 0:
            return False
        process.join(left)
        time.sleep(0.001)
    return True


@lru_cache(maxsize=1)
def _slots(setup: SlotsSetup) -> Slots:
    """The slots of this process, made when it is first given a command."""
    return Slots(setup)


def _run(setup: SlotsSetup, commands: Sequence[Command]) -> tuple[list[Report], Seconds]:
    return _slots(setup).run(commands)
