"""The streams of a device: computing, finding out sizes, sending and fetching, side by side. A CPU has just one.

On CUDA the host may wait for `side` only, where sizes are found out, while the models' stream holds work already; what
is sent and fetched goes through pinned memory on streams of its own. A tensor that crosses streams must be referenced
until its batch is fetched: the allocator of one stream does not know what another still reads.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from data_specs.arrays import Array

Mark = torch.cuda.Event | None
"""A point in a stream that another stream, or the host, can wait for; None on a CPU, where all is done when it is."""


class Lanes:
    """Sends, fetches, orders and times the work of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._busy_s = 0.0
        if self.cuda:
            self._side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
            self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, array: Array) -> Tensor:
        """An array on the device; the models' stream waits for it, the host does not."""
        tensor = torch.from_numpy(array)
        if not self.cuda:
            return tensor
        with torch.cuda.stream(self._up):
            sent = tensor.pin_memory().to(self.device, non_blocking=True)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._up)
        sent.record_stream(stream)
        return sent

    def fetch(self, tensors: list[Tensor]) -> tuple[list[Tensor], Mark]:
        """Copies in host memory, which are there once the mark is reached; the same tensors on a CPU."""
        if not self.cuda:
            return tensors, None
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            out = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
            return out, self._down.record_event()

    def mark(self) -> Mark:
        """Where the current stream is now."""
        return torch.cuda.current_stream(self.device).record_event() if self.cuda else None

    @contextmanager
    def side(self, after: Mark) -> Iterator[None]:
        """Work beside the models, once `after` is reached; the models' stream goes on when it is done."""
        if not self.cuda or after is None:
            yield
            return
        models = torch.cuda.current_stream(self.device)
        self._side.wait_event(after)
        with torch.cuda.stream(self._side):
            yield
        models.wait_stream(self._side)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts the device's time from the first to the last of what is queued here (of what is computed, on a CPU).

        On CUDA, gaps in which the device waits for the host to launch more within it count, too.
        """
        if not self.cuda:
            start = time.perf_counter()
            yield
            self._busy_s += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self._spans.append((begin, end))
        self._add_up()

    def busy_s(self) -> float:
        """Seconds that the device was busy so far, of the spans that are over."""
        self._add_up()
        return self._busy_s

    def wait(self) -> None:
        """Wait until the device has done all."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _add_up(self) -> None:
        while self._spans and self._spans[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._spans.pop(0)
            self._busy_s += begin.elapsed_time(end) / 1e3
