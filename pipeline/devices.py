"""Where models run: the `--device` of every command."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.config import RequestError


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:i`; RequestError when the device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"--device {name} is unknown: expected auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"--device {name} is not supported: expected auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            f"--device {name}: no CUDA device is visible to PyTorch; use --device cpu, or see `cla doctor`."
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise RequestError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return device


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread of the CPU while the block runs.

    For models so small that threads wait for each other longer than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
