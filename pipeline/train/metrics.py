"""What a run says of itself: JSON lines and TensorBoard always, Weights & Biases when asked for.

A line of `metrics.jsonl` has `step`, `split` (train or val) and numbers: `loss` and its parts as means over the steps
since the line before, `grad_norm`, `lr`, `samples_per_s`, `data_s` and `step_s` (seconds a step waited for data, and
took altogether), and what the task adds.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pipeline.config import FailedError, RequestError
from pipeline.foreign import BadJson, json_lines, shortened
from pipeline.train.checkpoint import BOARD, METRICS, explained


class Meter:
    """Means of scalars over a window of steps. Tensors stay where they are until the window is read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in the scalars of a step."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> tuple[list[str], Tensor]:
        """Names, sorted, and their means f8 [n] on the CPU; the window starts anew."""
        names = sorted(self._sums)
        means = [(self._sums[name] / self._counts[name]).cpu() for name in names]
        self._sums, self._counts = {}, {}
        return names, torch.stack(means) if means else torch.zeros(0, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; a resumed run finishes the window that was open."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class MetricsLog:
    """Writes the lines of a run; the main process has one. Lines after `step` of an earlier try are removed."""

    def __init__(self, folder: Path, *, step: int, wandb_project: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS
        self._wandb = _open_wandb(wandb_project, folder, config) if wandb_project else None
        with explained(self._path):
            _keep_until(self._path, step)
            self._file = self._path.open("a")
            self._board = SummaryWriter(folder / BOARD, purge_step=step + 1, flush_secs=30)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A line, everywhere. A number that is not finite becomes null in JSON."""
        line = {"step": step, "split": split, **{n: v if math.isfinite(v) else None for n, v in values.items()}}
        with explained(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Flush and close all of them."""
        with explained(self._path):
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: Path, split: str) -> list[dict[str, Any]]:
    """The lines of a run, for curves; of `train` or `val`."""
    path = folder / METRICS
    try:
        lines = [line for _, line in json_lines(path)] if path.is_file() else []
        return [line for line in lines if line["split"] == split]
    except (BadJson, OSError, KeyError, TypeError) as error:
        raise FailedError(f"{path}, {shortened(error)}: the curves of this run cannot be drawn.") from error


def _keep_until(path: Path, step: int) -> None:
    """Drop what a run wrote after the checkpoint that it goes on from, and a line that was cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    path.write_text("".join(kept))


def _open_wandb(project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    wandb = import_wandb()
    return wandb.init(project=project, dir=str(folder), name=folder.name, config=dict(config), resume="allow")


def import_wandb() -> ModuleType:
    """Weights & Biases. RequestError when it is not installed."""
    try:
        import wandb
    except ImportError:
        raise RequestError(
            "train.wandb asks for Weights & Biases, which is not installed: pip install wandb, or leave train.wandb "
            "empty (TensorBoard and metrics.jsonl are always written)."
        ) from None
    module: ModuleType = wandb
    return module
