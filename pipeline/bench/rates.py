"""What a device can do at best, and how many operations something takes: the two numbers before a measurement."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.bench.training import wait

_PRODUCTS = {"cpu": (1024, 1024, 4096), "cuda": (8192, 8192, 8192)}
"""Rows, inner and outer size of the matrices that tell a device's rate: of VGGT's, and what fills a GPU."""


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a product of matrices of that dtype, the best of five."""
    rows, inner, columns = _PRODUCTS[device.type]
    a = torch.ones(rows, inner, device=device, dtype=dtype)
    b = torch.ones(columns, inner, device=device, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(6):  # the first warms up
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            wait(device)
            seconds.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(seconds[1:]) / 1e9


def copy_rate(device: torch.device) -> float:
    """GB/s read and written by a copy of 256 MB, the best of five."""
    source = torch.zeros(64 << 20, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:]) / 1e9


@contextmanager
def counting() -> Iterator[Callable[[], float]]:
    """Gives a function that tells the operations so far, in products, convolutions and attention, 10^9."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    aten: Any = torch.ops.aten

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    on_cpu = {aten._scaled_dot_product_flash_attention_for_cpu: attention}  # the counter knows those of CUDA
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        yield lambda: float(counter.get_total_flops()) / 1e9
