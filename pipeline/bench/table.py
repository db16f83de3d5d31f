"""What a benchmark returns: rows with the numbers, and the machine they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table; every row has a value a column, numbers stay numbers until they are printed."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The table as a person reads it."""
        cells = [[_shown(value) for value in row] for row in self.rows]
        widths = [max(len(c) for c in column) for column in zip(self.columns, *cells, strict=True)]
        yield self.title
        yield "  ".join(name.ljust(width) for name, width in zip(self.columns, widths, strict=True)).rstrip()
        for row in cells:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield from (f"  {note}" for note in self.notes)

    def as_json(self) -> dict[str, Any]:
        """Title, rows by column name, further figures, and the machine."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": list(self.notes),
            **self.figures,
            "machine": machine(),
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def interleaved(actions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each action over `rounds` rounds, the actions taking turns so that drift hits all alike."""
    (times,) = interleaved_rounds(actions, rounds, (time.perf_counter,), warmup)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def interleaved_rounds(
    actions: Mapping[str, Callable[[], Any]],
    rounds: int,
    clocks: Sequence[Callable[[], float]],
    warmup: int = 1,
    before: Callable[[str], Any] = lambda name: None,
) -> list[dict[str, list[float]]]:
    """Seconds of each round, by several clocks: `time.process_time` says what a shared machine would do when idle.

    `before` is called with the name of each action, outside of what is timed.
    """
    times: list[dict[str, list[float]]] = [{name: [] for name in actions} for _ in clocks]
    for turn in range(rounds + warmup):
        for name, action in actions.items():
            before(name)
            start = [clock() for clock in clocks]
            action()
            spent = [clock() - begin for clock, begin in zip(clocks, start, strict=True)]
            if turn >= warmup:
                for taken, seconds in zip(times, spent, strict=True):
                    taken[name].append(seconds)
    return times


def columns_of(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Rows given by name as columns and rows of a `Table`."""
    names = tuple(rows[0])
    return names, tuple(tuple(row[name] for name in names) for row in rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
