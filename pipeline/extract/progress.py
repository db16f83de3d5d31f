"""How far a run is: a bar on a terminal, JSON lines on stderr otherwise."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


@dataclass(kw_only=True)
class Tally:
    """What a run has done. Seconds are spent in stages that overlap: they may sum to more than `wall_s`."""

    clips: int = 0
    frames: int = 0
    rejected: int = 0
    skipped_clips: int = 0
    shards: int = 0
    bytes: int = 0
    read_s: float = 0.0
    infer_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0

    @property
    def frames_per_s(self) -> float:
        """Frames a second of wall time."""
        return self.frames / self.wall_s if self.wall_s > 0 else 0.0


class Reporter(ABC):
    """Told of every clip; shows it in its own way."""

    @abstractmethod
    def update(self, tally: Tally, total: int) -> None:
        """Show `tally`, of `total` clips to do in this run."""


class JsonReporter(Reporter):
    """A JSON line on `stream` at most every `every` seconds."""

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        self.stream, self.every, self.last = stream, every, -every

    def update(self, tally: Tally, total: int) -> None:
        """Write a line when the last is old enough, or all is done."""
        now = time.monotonic()
        done = tally.clips + tally.rejected
        if now - self.last < self.every and done < total:
            return
        self.last = now
        values = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(tally).items()}
        rate = done / tally.wall_s if tally.wall_s > 0 else 0.0
        eta = round((total - done) / rate, 1) if rate else None
        line = {
            "event": "progress",
            "total": total,
            "frames_per_s": round(tally.frames_per_s, 2),
            "eta_s": eta,
            **values,
        }
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()


class BarReporter(Reporter):
    """A rich progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("extract", total=None, frames=0, rate=0.0, rejected=0, mb=0.0)

    def update(self, tally: Tally, total: int) -> None:
        """Move the bar."""
        self.progress.update(
            self.task,
            total=total,
            completed=tally.clips + tally.rejected,
            frames=tally.frames,
            rate=tally.frames_per_s,
            rejected=tally.rejected,
            mb=tally.bytes / 1e6,
        )


@contextmanager
def reporter(stream: TextIO | None = None) -> Iterator[Reporter]:
    """The reporter that fits the stream, stderr unless another is given."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield JsonReporter(stream)
        return
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        TextColumn("clips"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[frames]} frames, {task.fields[rate]:.1f}/s"),
        TextColumn("{task.fields[rejected]} rejected"),
        TextColumn("{task.fields[mb]:.1f} MB"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield BarReporter(progress)
