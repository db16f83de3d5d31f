"""Maps a file and lets go of its descriptor, which Python's own `mmap` keeps (until 3.13) for each file."""

import ctypes
import errno
import mmap
import os
from typing import Any

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_MMAP, _MUNMAP = _LIBC.mmap, _LIBC.munmap
_OFFSET = ctypes.c_int64 if ctypes.sizeof(ctypes.c_void_p) == 8 else ctypes.c_long
_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, _OFFSET)
_MMAP.restype = ctypes.c_void_p
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, size: int, *, writable: bool = False) -> memoryview:
    """The first `size` bytes of an open file, read-only by default; mapped for as long as there is a view of them.

    OSError when the system refuses. Reading what somebody cuts off later ends the process, as with every mapping.
    """
    if size == 0:
        return memoryview(b"")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _MMAP(None, size, protection, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == _FAILED:
        number = ctypes.get_errno() or errno.ENOMEM
        raise OSError(number, f"cannot map {size} bytes ({os.strerror(number)})")
    return np.asarray(_Mapping(address, size, writable)).data


class _Mapping:
    """What an array of the mapped bytes refers to."""

    def __init__(self, address: int, size: int, writable: bool) -> None:
        self._address, self._size = address, size
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, not writable),
        }

    def __del__(self, unmap: Any = _MUNMAP) -> None:
        unmap(self._address, self._size)
