"""Hands the batches of a DataLoader's workers to its process in shared memory that is used again.

Torch sends every tensor in shared memory of its own: for each the kernel makes new pages, the worker and the reader
fault them in, and a socket carries a descriptor. Here a worker packs a batch into one segment, which the reader maps
once; a byte in the segment says when the reader has let go of its last tensor, and the worker fills it again. Nothing
is copied on the way, and a batch costs a message of some hundred bytes.

Segments are anonymous files (Linux' memfd): nothing of them is left when their processes end, however they end.
"""

import io
import itertools
import os
import pickle
import sys
import threading
import uuid
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data_specs.arrays import Array
from pipeline.store.mapping import map_file

IDLE = 4
"""Free segments that a worker keeps."""

_HEAD = 64
"""Bytes of a segment before its data: who has it, and whether the reader has mapped it."""

_LINE = 64
_LEAST = 1 << 20
_FREE, _SENT, _GONE = 0, 1, 2

HAS_SEGMENTS = hasattr(os, "memfd_create")
"""Whether this system has anonymous files; torch sends the tensors otherwise."""


def hand_over(batch: Any) -> Any:
    """The collate function of a dataset that gives whole batches: as they are, from a worker in shared memory."""
    return Sent(batch) if HAS_SEGMENTS and get_worker_info() is not None else batch


class Segments:
    """The shared memory that a worker packs batches into."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._all: list[_Segment] = []
        self._open: list[_Segment] = []
        self._expected = 0

    def take(self, size: int) -> Array:
        """An array u1 of that many bytes, for the batch that is being packed."""
        with self._lock:
            for segment in self._open:
                if segment.unused():  # what was packed into it is gone, and was never sent
                    segment.end = _HEAD
                if segment.end + size <= len(segment.base):
                    return segment.take(size)
            self._open.append(self._free(size))
            return self._open[-1].take(size)

    def seal(self) -> list["_Segment"]:
        """What has been taken from since the last time; the next batch gets other memory."""
        with self._lock:
            sealed, self._open = self._open, []
            self._expected = sum(segment.end for segment in sealed)
            return sealed

    def holding(self, address: int, size: int) -> tuple["_Segment", int] | None:
        """The segment of the batch being packed that has these bytes, and where in it."""
        for segment in self._open:
            at = address - segment.address
            if at >= _HEAD and at + size <= segment.end:
                return segment, at
        return None

    def _free(self, size: int) -> "_Segment":
        needed = _HEAD + max(size + _LINE, self._expected)
        kept, found, idle = [], None, 0
        for segment in reversed(self._all):  # the one used last is likeliest to be in a cache
            free = segment not in self._open and segment.base[0] == _FREE and segment.unused()
            if free and len(segment.base) >= needed and found is None:
                found = segment
            elif free and (len(segment.base) < needed or idle == IDLE):
                segment.drop()
                continue
            else:
                idle += free
            kept.append(segment)
        self._all = kept[::-1]
        if found is None:
            # batches of ragged frames differ by some percent, and this may be the first array of a larger one
            room = max(needed + needed // 4, 2 * size, _LEAST)
            found = _Segment((self._name, next(self._numbers)), -(-room // 4096) * 4096)
        else:
            self._all.remove(found)
        self._all.append(found)
        found.end = _HEAD
        return found


class _Segment:
    """Shared memory of a worker. `end` is where the next array may begin."""

    def __init__(self, key: tuple[str, int], size: int) -> None:
        self.key = key
        self.descriptor = os.memfd_create("cla-batch")
        os.ftruncate(self.descriptor, size)
        # through a buffer, so that every view of the array refers to it and can be counted (see `memory`)
        self.base: Array = np.frombuffer(map_file(self.descriptor, size, writable=True), dtype=np.uint8)
        self.address = self.base.ctypes.data
        self.end = _HEAD

    def take(self, size: int) -> Array:
        start, self.end = self.end, -(-(self.end + size) // _LINE) * _LINE
        return self.base[start : start + size]

    def unused(self) -> bool:
        """Whether no array of this process lies in it."""
        return sys.getrefcount(self.base) == _UNUSED

    def drop(self) -> None:
        self.base[0] = _GONE
        os.close(self.descriptor)


def _references_of_unused() -> int:
    class Holder:
        base = np.frombuffer(bytearray(1), dtype=np.uint8)

    return sys.getrefcount(Holder.base)


_UNUSED = _references_of_unused()
_OURS: list[Segments] = []


def segments() -> Segments:
    """Those of this process; a worker that is forked has none of its parent's."""
    if not _OURS or _OURS[0].process != os.getpid():
        _OURS[:] = [Segments()]
    return _OURS[0]


class Sent:
    """A batch on its way from a worker: it is unpickled as what it holds."""

    def __init__(self, batch: Any) -> None:
        pool = segments()
        data = io.BytesIO()
        packer = _Packer(data, pool)
        packer.dump(batch)
        pool.seal()
        for segment in packer.used:
            segment.base[0] = _SENT  # while the batch and the packer still refer to it
        self._data, self._segments = data.getvalue(), packer.used

    def __reduce__(self) -> tuple[Any, ...]:
        places = [(s.key, os.getpid(), len(s.base), None if s.base[1] else DupFd(s.descriptor)) for s in self._segments]
        return _receive, (places, self._data)


class _Packer(pickle.Pickler):
    """Writes where tensors are instead of their values."""

    def __init__(self, file: io.BytesIO, pool: Segments) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._pool = pool
        self._rooms: list[Array] = []
        self.used: list[_Segment] = []

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not Tensor or value.requires_grad or not _is_plain(value):
            return None
        tensor = value.contiguous()
        size = tensor.nbytes
        if size == 0:
            return 0, 0, tensor.dtype, tuple(tensor.shape)
        found = self._pool.holding(tensor.data_ptr(), size)
        if found is None:
            room = self._pool.take(size)
            self._rooms.append(room)  # or the next one would be taken from the same place
            torch.from_numpy(room).copy_(tensor.reshape(-1).view(torch.uint8))
            found = self._pool.holding(room.ctypes.data, size)
            assert found is not None
        segment, at = found
        if segment not in self.used:
            self.used.append(segment)
        return self.used.index(segment), at, tensor.dtype, tuple(tensor.shape)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, arrays: list[Array]) -> None:
        super().__init__(io.BytesIO(data))
        self._arrays = arrays

    def persistent_load(self, place: Any) -> Tensor:
        number, at, dtype, shape = place
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        return torch.from_numpy(self._arrays[number][at : at + size]).view(dtype).view(shape)


class _Lease:
    """What the arrays of a received batch refer to: the segment is free when nothing does."""

    def __init__(self, segment: Array) -> None:
        self._segment, self._process = segment, os.getpid()
        self.__array_interface__ = segment.__array_interface__

    def __del__(self, process: Any = os.getpid) -> None:
        if process() == self._process:  # a copy that a fork made says nothing of the original
            self._segment[0] = _FREE


_RECEIVED: dict[tuple[str, int], tuple[int, Array]] = {}
_LOCK = threading.Lock()


def _receive(places: list[tuple[tuple[str, int], int, int, Any]], data: bytes) -> Any:
    arrays = [np.asarray(_Lease(_mapped(*place))) for place in places]
    return _Unpacker(data, arrays).load()


def _mapped(key: tuple[str, int], owner: int, size: int, handle: Any) -> Array:
    with _LOCK:
        known = _RECEIVED.get(key)
        if handle is not None:
            descriptor = handle.detach()
            try:
                if known is None:
                    known = owner, np.frombuffer(map_file(descriptor, size, writable=True), dtype=np.uint8)
            finally:
                os.close(descriptor)
            _sweep()
            known[1][1] = 1
            _RECEIVED[key] = known
    assert known is not None, "a loader process sent memory that it shares with another process than this"
    return known[1]


def forget_ended() -> None:
    """Let go of the memory of workers that have ended, as soon as no batch is left in it."""
    with _LOCK:
        _sweep()


def _sweep() -> None:
    for key, (owner, array) in list(_RECEIVED.items()):
        if array[0] == _GONE or not _runs(owner):
            del _RECEIVED[key]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
