"""Faults of the machine, put into a process that writes a store: by Python's audit hooks, which every open, rename and
removal of a file passes before it happens, and around `os.fsync` and the writing of archive entries, which have none.

A fault is a plan of plain values: {"store": folder, "at": number of the event, "do": "exit", "SIGTERM" or an errno's
name, "events": "commits" or "writes"}, {"largest_file": bytes}, {"clock": seed}. An errno stays from that event on, as
a full disk does; the signal comes once. {"count": file} writes how many events there were.
"""

import errno
import os
import random
import resource
import signal
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Events:
    """What happens to the files of a store, counted."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.store, self.kind = plan["store"], plan.get("events", "commits")
        self.at, self.do, self.count_file = plan.get("at"), plan.get("do"), plan.get("count")
        self.seen = {"commits": 0, "writes": 0}
        self.busy = False

    def happen(self, kind: str, path: object) -> None:
        if self.busy or not isinstance(path, (str, bytes, os.PathLike)) or not self._inside(path):
            return
        self.seen[kind] += 1
        if self.count_file:
            self.busy = True
            Path(self.count_file).write_text(f"{self.seen['commits']} {self.seen['writes']}")
            self.busy = False
        if self.at is None or kind != self.kind or self.seen[kind] < self.at:
            return
        if self.do == "exit":
            os._exit(9)
        if self.do == "SIGTERM":
            if self.seen[kind] == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return
        number = getattr(errno, self.do)
        raise OSError(number, os.strerror(number), os.fspath(path))

    def _inside(self, path: Any) -> bool:
        return os.fsdecode(path).startswith(self.store)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & _WRITING):
                self.happen("commits", path)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            self.happen("commits", arguments[0])


def install(plan: dict[str, Any]) -> None:
    """Put the faults of a plan into this process."""
    if "store" in plan:
        events = Events(plan)
        fsync, entry, member = os.fsync, zipfile.ZipFile.writestr, tarfile.TarFile.addfile

        def counted_fsync(descriptor: int) -> None:
            events.happen("commits", Path(f"/proc/self/fd/{descriptor}").readlink())
            fsync(descriptor)

        def counted_entry(self: zipfile.ZipFile, *arguments: Any, **named: Any) -> None:
            events.happen("writes", self.filename)
            entry(self, *arguments, **named)

        def counted_member(self: tarfile.TarFile, *arguments: Any, **named: Any) -> None:
            events.happen("writes", self.name)
            member(self, *arguments, **named)

        os.fsync = counted_fsync
        zipfile.ZipFile.writestr = counted_entry  # type: ignore[method-assign]
        tarfile.TarFile.addfile = counted_member  # type: ignore[method-assign]
        sys.addaudithook(events.audit)
    if "largest_file" in plan:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["largest_file"], plan["largest_file"]))
    if "clock" in plan:
        _jumping_clock(plan["clock"])


def _jumping_clock(seed: int) -> None:
    """The time of day leaps by years at every look, backwards as well, to before 1970 and 1980."""
    dice, now = random.Random(seed), time.time

    def leaping() -> float:
        return now() + dice.choice((-60, -50, -30, -1, 0, 1, 20)) * 365.25 * 86400

    time.time = leaping
    time.time_ns = lambda: int(leaping() * 1e9)
