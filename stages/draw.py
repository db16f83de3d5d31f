"""Random numbers of the samples of a batch, the same however a step's samples are cut into processes and micro-batches.

Noise that a model draws by itself depends on which process a sample is in: two processes then learn something else
than one with the doubled batch. A `Draw` draws for all samples of the step, from the seed and the step alone, and
gives the rows of this batch.
"""

import torch
from torch import Tensor

_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Odd constants of splitmix64: neighbouring seeds and steps must give unrelated generators."""


def mix_seed(*numbers: int) -> int:
    """A seed below 2**63 from whole numbers, unlike that of any neighbour."""
    state = 0
    for number in numbers:
        state = (state + number + 1) * _MIX[0] % 2**64
        state = (state ^ (state >> 30)) * _MIX[1] % 2**64
        state = (state ^ (state >> 27)) * _MIX[2] % 2**64
        state ^= state >> 31
    return state >> 1


class Draw:
    """Random numbers for samples `start:start+count` of a step of `total` samples.

    Every call gives new numbers; all processes must make the same calls in the same order. Numbers are drawn on the
    CPU, so that every device sees the same ones, and moved to `device`.
    """

    def __init__(
        self, seed: int, step: int, *, start: int, count: int, total: int, device: torch.device | str = "cpu"
    ) -> None:
        if not 0 <= start <= start + count <= total:
            raise ValueError(f"samples {start}:{start + count} are outside of a step of {total}")
        self._generator = torch.Generator().manual_seed(mix_seed(seed, step))
        self._rows = slice(start, start + count)
        self._total, self._device = total, device

    @classmethod
    def whole(cls, count: int, *, seed: int = 0, step: int = 0, device: torch.device | str = "cpu") -> "Draw":
        """For a batch that is the whole step."""
        return cls(seed, step, start=0, count=count, total=count, device=device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers f4 [count, *shape]."""
        return self._mine(torch.randn(self._total, *shape, generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) f4 [count, *shape]."""
        return self._mine(torch.rand(self._total, *shape, generator=self._generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Whole numbers 0..high-1 i8 [count, *shape]."""
        return self._mine(torch.randint(high, (self._total, *shape), generator=self._generator))

    def _mine(self, numbers: Tensor) -> Tensor:
        return numbers[self._rows].to(self._device, non_blocking=True)
