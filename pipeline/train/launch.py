"""Starts or resumes a run: answers what cannot be, then hands over to the loop."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.config import FailedError, RequestError, leaf_values
from pipeline.devices import choose_device
from pipeline.train.checkpoint import RunFolder, RunRecord
from pipeline.train.loop import Trainer, TrainSummary
from pipeline.train.metrics import import_wandb
from pipeline.train.processes import Processes
from pipeline.train.progress import Reporter, SilentReporter
from pipeline.train.signals import StopSignal
from pipeline.train.task import Task
from pipeline.train_config import FREE_ON_RESUME

Mode = Literal["new", "resume", "overwrite"]
_PACKAGES = ("concerto-laq", "torch", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Where a run goes and how it starts; what it learns is the task's."""

    out: Path
    mode: Mode = "new"
    device: str = "auto"


def train(task: Task[Any], request: TrainRequest, report: Reporter) -> TrainSummary:
    """Run a task from its start, or from the last checkpoint, to its last step.

    Raises RequestError for what is wrong with the request, FailedError for what fails (a loss that is not finite, a
    full disk), and KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint that `--resume` goes on from.
    """
    device = choose_device(request.device)
    if task.recipe.train.wandb:
        import_wandb()  # before hours of training, not after
    folder = RunFolder(request.out)
    folder.refuse_foreign()
    record = new_record(task)
    if request.mode == "resume":
        record = _resumed(folder, record)
    elif request.mode == "new" and folder.exists():
        raise RequestError(
            f"There is a run at {request.out} already: go on with it by --resume, replace it by --overwrite, or name "
            "another --out."
        )
    processes = Processes(task.recipe.train, device)
    try:
        trainer = Trainer(task, folder, record, processes, report if processes.main else SilentReporter())
        trainer.begin(resume=request.mode == "resume")
        with StopSignal() as stop:
            return trainer.run(stop)
    except torch.OutOfMemoryError as error:
        raise FailedError(
            f"Out of memory on {processes.device}: lower train.batch (and raise train.accumulate by as much), or turn "
            "on the model's activation checkpointing."
        ) from error
    finally:
        processes.end()


def new_record(task: Task[Any]) -> RunRecord:
    """What `run.json` says of a run of this task."""
    described = task.describe()
    return RunRecord(
        task=task.name,
        recipe=task.recipe.name,
        config=task.recipe.model_dump(mode="json"),
        store=described.get("store", {}),
        split=described.get("split", {}),
        statistics=described.get("statistics", {}),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _resumed(folder: RunFolder, new: RunRecord) -> RunRecord:
    """The record to go on with; RequestError unless the run there learns the same from the same store."""
    old = folder.record()
    if old.task != new.task:
        raise RequestError(f"The run at {folder.path} is of task {old.task}, not {new.task}: name another --out.")
    mine, theirs = leaf_values(old.config), leaf_values(new.config)
    names = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n) and n not in FREE_ON_RESUME]
    if names:
        raise RequestError(
            f"The run at {folder.path} was started with another recipe; these keys differ: {', '.join(names)}. Give "
            "the same ones to --resume (or none: the run knows its recipe), replace the run by --overwrite, or name "
            "another --out."
        )
    refuse_other_data(folder.path, old.store, new.store)
    return new


def refuse_other_data(run: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """RequestError unless what two runs say of their stores is of the same content."""
    if old.get("digest") != new.get("digest"):
        raise RequestError(
            f"The run at {run} was trained on other data (store {old.get('url')}, digest "
            f"{str(old.get('digest'))[:12]}; this one has {str(new.get('digest'))[:12]}): give that store "
            "to --resume, or name another --out."
        )
