"""The command line: reads arguments, calls the rooms, prints. Heavy imports wait until a command needs them.

A module a group of commands, each of which adds its own to the groups of `app`.
"""

import os
import signal
from types import FrameType
from typing import NoReturn

from pipeline.cli import bench, demo, doctor, evaluate, extract, inspect, label, merge, plan, repair, sim, train
from pipeline.cli.groups import app

__all__ = [
    "app",
    "bench",
    "demo",
    "doctor",
    "evaluate",
    "extract",
    "inspect",
    "label",
    "main",
    "merge",
    "plan",
    "repair",
    "sim",
    "train",
]


def main() -> None:
    """Entry point of the `cla` command."""
    signal.signal(signal.SIGTERM, _terminate)
    # Decoding processes share the cores with inference. Threads of OpenMP that wait by spinning take them away: with
    # one other busy process on two cores extraction ran ten times slower. Read when torch is loaded, hence here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
