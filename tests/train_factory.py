"""A tiny task for tests of the training loop: a line through noisy points, with noise of its own and a counter."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from data_specs.batches import Batch
from pipeline.train.launch import Mode, TrainRequest, train
from pipeline.train.loop import TrainSummary
from pipeline.train.progress import Reporter, SilentReporter
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train_config import TrainRecipe, TrainSection
from stages.draw import mix_seed

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Points(Batch):
    """`x` f4 [B,3], `y` f4 [B]; `place` i8 [B], where in the stream they are."""

    x: Tensor
    y: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.x)


def points_at(places: range, seed: int, broken: int | None = None) -> Points:
    """A function of seed and place; the point at place `broken` is not finite."""
    rows = [torch.randn(3, generator=torch.Generator().manual_seed(mix_seed(seed, place))) for place in places]
    x = torch.stack(rows)
    place = torch.tensor(list(places))
    y = x.sum(1) + torch.where(place == (-1 if broken is None else broken), torch.nan, 0.0)
    return Points(x=x, y=y, place=place)


class Line(nn.Module):
    """A small network with dropout, so that torch's global generator matters."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)[:, 0]
        return out


class LineTask(Task[Points]):
    """The task; `after` counts steps, and is kept by checkpoints."""

    name: ClassVar[str] = "line"

    def __init__(self, recipe: TrainRecipe, *, digest: str = "d0", broken: int | None = None):
        self.recipe, self.digest, self.broken = recipe, digest, broken
        self.after = 0

    @classmethod
    def model_of(cls, recipe: Any) -> nn.Module:
        return Line(0.25)

    def describe(self) -> dict[str, Any]:
        return {"store": {"url": "memory", "digest": self.digest}}

    def batches(self, plan: BatchPlan) -> Iterator[Points]:
        return (points_at(places, self.recipe.seed, self.broken) for places in plan)

    def validation_batches(self, rank: int, world: int) -> Iterator[Points]:
        return (points_at(range(8 * i, 8 * i + 8), 1000) for i in range(4) if i % world == rank)

    def loss(self, model: Any, batch: Points, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        noise = 0.1 * step.draw.normal() if torch.is_grad_enabled() else 0.0
        error = (model(batch.x) - batch.y + noise) ** 2
        return error.mean(), {"worst": error.detach().max()}

    def keys(self, batch: Points) -> list[str]:
        return [f"point-{place}" for place in batch.place.tolist()]

    def after_step(self, model: Any, number: int) -> None:
        self.after += 1

    def log_metrics(self, model: Any) -> dict[str, float]:
        return {"after": float(self.after)}

    def state_dict(self) -> dict[str, Any]:
        return {"after": self.after}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.after = state["after"]


class StopAt(SilentReporter):
    """Sends a signal to this process when a step's line is logged, so that the next step is the last."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number, self.said = step, number, ""

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if step == self.step and split == "train":
            os.kill(os.getpid(), self.number)

    def warn(self, text: str) -> None:
        self.said = text


class BadReader(Dataset[int]):
    """Gives its item back; at item 2 its process dies, or hangs."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def __getitem__(self, item: int) -> int:
        if item == 2:
            if self.ending == "dies":
                os._exit(1)
            time.sleep(120)
        return item


def run_in_two_processes(code: str) -> None:
    """Run Python code in two processes that find each other as torchrun's do; the test's modules can be imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    shared = {**os.environ, "PYTHONPATH": paths, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        for rank in "01"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()


def line_recipe(**section: Any) -> TrainRecipe:
    """Four steps of four samples, a log line each; `section` overrides."""
    defaults = {"steps": 4, "batch": 4, "lr": 0.01, "warmup": 2, "workers": 0, "log_every": 1, "validate_every": 2}
    return TrainRecipe(name="line", train=TrainSection(**{**defaults, **section}))


def run_line(
    out: Path, mode: Mode = "new", *, report: Reporter | None = None, task: Task[Any] | None = None, **section: Any
) -> TrainSummary:
    """Train the line into a folder."""
    chosen = task or LineTask(line_recipe(**section))
    return train(chosen, TrainRequest(out=out, mode=mode, device="cpu"), report or SilentReporter())
