"""The processes of a run and what they do together, by Accelerate: one on a CPU, or many by torchrun."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from pipeline.train_config import TrainSection

ValueT = TypeVar("ValueT")


class Processes:
    """This process among those of the run: its device, the wrapped model, sums and barriers.

    Buffers are not broadcast at every step as DDP does by default: the tasks that have any sum them over the
    processes when they need them.
    """

    def __init__(self, section: TrainSection, device: torch.device) -> None:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device.index)
        # Accelerate keeps the settings of the first run of a process for all later ones, unless told otherwise.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if section.precision == "bfloat16" else "no",
            gradient_accumulation_steps=section.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The model with autocast and gradients averaged over the processes, and its optimiser."""
        wrapped, stepping = self._accelerator.prepare(model, optimizer)
        return wrapped, stepping

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch, as its share of the step."""
        self._accelerator.backward(loss)

    def holding_back(self, model: nn.Module, hold: bool) -> AbstractContextManager[None]:
        """While `hold`, gradients stay in this process: all but the last micro-batch of a step."""
        return self._accelerator.no_sync(model) if hold else nullcontext()

    def clip(self, model: nn.Module, most: float) -> Tensor:
        """Scale the gradients to norm `most` at most; their norm before, 0-dim."""
        return self._accelerator.clip_grad_norm_(model.parameters(), most)  # type: ignore[no-any-return]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.world == 1:
            return values
        return self._accelerator.reduce(values.to(self.device), "mean").to(values.device)  # type: ignore[no-any-return]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world == 1:
            return values
        return self._accelerator.reduce(values.to(self.device), "sum").to(values.device)  # type: ignore[no-any-return]

    def gather(self, value: ValueT) -> list[ValueT]:
        """The value of every process, by rank."""
        return list(gather_object([value])) if self.world > 1 else [value]

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """After the run: leave the process group, forget the settings."""
        self._accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators of this process."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
