"""Losses over the held-out samples."""

from typing import Any

import torch
from torch import nn

from pipeline.train.processes import Processes
from pipeline.train.task import Step, Task
from stages.draw import Draw


@torch.no_grad()
def validate(task: Task[Any], model: nn.Module, processes: Processes, seed: int) -> dict[str, float]:
    """Means of `loss` and the task's scalars over all validation samples; empty where there are none.

    The model is in evaluation mode meanwhile, and the random numbers of training stay as they were.
    """
    totals: dict[str, float] = {}
    samples = 0
    cuda = [processes.device] if processes.device.type == "cuda" else []
    training = model.training
    model.eval()
    with torch.random.fork_rng(devices=cuda):
        for batch in task.validation_batches(processes.rank, processes.world):
            placed = batch.to(processes.device, non_blocking=True)
            step = Step(number=0, draw=Draw.whole(len(placed), seed=seed, device=processes.device))
            loss, scalars = task.loss(model, placed, step)
            for name, value in {**scalars, "loss": loss}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(placed)
            samples += len(placed)
    model.train(training)
    parts = processes.gather((totals, samples))
    count = sum(part[1] for part in parts)
    names = {name: None for part in parts for name in part[0]}
    return {name: sum(part[0].get(name, 0.0) for part in parts) / count for name in names}
