"""How far a run is: a bar on a terminal, JSON lines on stderr otherwise."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class Reporter(ABC):
    """Told of every step; shows it in its own way."""

    @abstractmethod
    def update(self, step: int, total: int) -> None:
        """Show that `step` of `total` steps are done."""

    @abstractmethod
    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show a line of the log."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """Show a warning."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a fact that is worth knowing."""


class SilentReporter(Reporter):
    """Shows nothing: for tests, and for all processes of a run but the main one."""

    def update(self, step: int, total: int) -> None:
        """Nothing."""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class JsonReporter(Reporter):
    """A JSON line on `stream` for the newest line of the log, at most every `every` seconds; validation always."""

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        self.stream, self.every, self.last = stream, every, -every
        self.total = 0

    def update(self, step: int, total: int) -> None:
        """Remember the total."""
        self.total = total

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write a line when the last is old enough."""
        now = time.monotonic()
        if split == "train" and now - self.last < self.every:
            return
        self.last = now
        rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
        self._write({"event": "progress", "step": step, "total": self.total, "split": split, **rounded})

    def warn(self, text: str) -> None:
        """Write a line."""
        self._write({"event": "warning", "text": text})

    def note(self, text: str) -> None:
        """Write a line."""
        self._write({"event": "note", "text": text})

    def _write(self, line: Mapping[str, object]) -> None:
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()


class BarReporter(Reporter):
    """A rich progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("train", total=None, shown="")

    def update(self, step: int, total: int) -> None:
        """Move the bar."""
        self.progress.update(self.task, total=total, completed=step)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show the loss and what there is of codes; validation stays as a line above the bar."""
        shown = f"loss {values['loss']:.4g}"
        if "codes_used" in values:
            shown += f", {values['codes_used']:.0f} codes, perplexity {values['perplexity']:.1f}"
        if split == "train":
            self.progress.update(self.task, shown=f"{shown}, {values['samples_per_s']:.0f} samples/s")
        else:
            self.progress.console.print(f"step {step}: validation {shown}", highlight=False)

    def warn(self, text: str) -> None:
        """A line above the bar."""
        self.progress.console.print(f"warning: {text}", highlight=False)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.progress.console.print(text, highlight=False)


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
        TextColumn("steps"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield BarReporter(progress)
