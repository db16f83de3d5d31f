"""A task at its first steps, as the loop of `cla train` makes them, for timing."""

from typing import Generic

import torch

from pipeline.train.optim import make_optimizer
from pipeline.train.processes import Processes
from pipeline.train.task import BatchPlan, BatchT, Step, Task
from stages.draw import Draw


class Training(Generic[BatchT]):
    """`read` takes the next batch, `step` learns from it; both wait until the device is done. `end` it after use.

    Attributes:
        module: the model itself. parameters: how many learn. batch: the last one that was read.
    """

    def __init__(self, task: Task[BatchT], device: torch.device) -> None:
        self.processes = Processes(task.recipe.train, device)
        torch.manual_seed(task.recipe.seed)
        module = task.model_of(task.recipe).to(device)
        task.start(module, device)
        self.parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        self.module, self._task, self._device, self._number = module, task, device, 0
        optimizer = make_optimizer(module, task.recipe.train, task.lr_scales(module))
        self._model, self._optimizer = self.processes.wrap(module, optimizer)
        self._batches = task.batches(BatchPlan(batch=task.recipe.train.batch))
        self.batch: BatchT | None = None

    def read(self) -> None:
        """The next batch of the store, onto the device."""
        self.batch = next(self._batches).to(self._device)
        wait(self._device)

    def step(self) -> None:
        """Forward, backward, clipping and optimiser, on the batch that was read."""
        assert self.batch is not None, "a step needs a batch"
        section, seed = self._task.recipe.train, self._task.recipe.seed
        draw = Draw.whole(len(self.batch), seed=seed, step=self._number, device=self._device)
        loss, _ = self._task.loss(self._model, self.batch, Step(number=self._number, draw=draw))
        self.processes.backward(loss)
        self.processes.clip(self._model, section.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._number += 1
        wait(self._device)

    def end(self) -> None:
        """Leave the process group."""
        self.processes.end()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
