"""Memory that batches are packed into.

Asking the kernel for it anew costs as much as filling it: a batch of 20 MB is 5,000 page faults. Arrays are therefore
used again once no tensor needs them; pinned ones come from torch, which does the same. Each begins on a cache line:
off it, copying a frame takes a fifth longer.
"""

import math
import sys
import threading

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data_specs.arrays import Array
from pipeline.store.handover import HAS_SEGMENTS, segments

SMALL = 1 << 14
"""Bytes up to which memory comes from the C library, which keeps it itself."""

SWEEP = 256
"""Arrays taken from one sweep for idle blocks to the next; what was not taken in between is let go."""

_LINE = 64


def new_tensor(shape: tuple[int, ...], dtype: "np.dtype[np.generic]", *, pin: bool = False) -> tuple[Tensor, Array]:
    """A tensor to be filled, and the same memory as an array.

    Page-locked when `pin` is set; in a worker of a DataLoader shared with the process that it reads for, to which it
    then goes without another copy (see `handover`).
    """
    size = math.prod(shape) * dtype.itemsize
    if size and pin:
        tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
        return tensor, tensor.numpy()
    if size <= SMALL:
        array: Array = np.empty(shape, dtype)
    elif HAS_SEGMENTS and get_worker_info() is not None:
        array = np.ndarray(shape, dtype, segments().take(size))
    else:
        array = np.ndarray(shape, dtype, _KEPT.take(size))
    return torch.from_numpy(array), array


class Blocks:
    """Blocks of memory, taken again when nothing refers to them.

    The one that was used last comes first: what a batch is packed into is then still in a cache, if the one before is
    gone. Out of it the same copy takes a third longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[tuple[Array, int]] = []
        """Blocks with the number of the take that they were last used by, in that order."""
        self._takes = 0

    def take(self, size: int) -> Array:
        """An array u1, `size` or longer, that no other has. Whoever drops the last view of it gives it back."""
        most = size + size // 4 + 4096
        with self._lock:
            self._takes += 1
            if self._takes % SWEEP == 0:
                self._sweep()
            for i in range(len(self._blocks) - 1, -1, -1):
                block = self._blocks[i][0]
                if size <= len(block) <= most and sys.getrefcount(block) == _UNUSED:
                    del self._blocks[i]
                    break
            else:
                # eight sizes to a factor of two: ragged batches differ by a few percent
                step = 1 << max(size.bit_length() - 4, 12)
                block = _aligned(-(-size // step) * step)
            self._blocks.append((block, self._takes))
            return block[:]

    def _sweep(self) -> None:
        since, kept = self._takes - SWEEP, []
        for i in range(len(self._blocks)):
            block = self._blocks[i][0]
            if self._blocks[i][1] >= since or sys.getrefcount(block) != _UNUSED:
                kept.append(self._blocks[i])
        self._blocks = kept


def _aligned(size: int) -> Array:
    whole = np.empty(size + _LINE, dtype=np.uint8)
    # numpy lets a view of a view refer to the first array that is no view; through a buffer this one is no view
    return np.frombuffer(whole.data, dtype=np.uint8, count=size, offset=-whole.ctypes.data % _LINE)


def _references_of_unused() -> int:
    """The references to a block that only its list has, with what a name for it and the question add to them."""
    blocks = [(_aligned(1), 0)]
    block = blocks[0][0]
    return sys.getrefcount(block)


_UNUSED = _references_of_unused()
_KEPT = Blocks()
