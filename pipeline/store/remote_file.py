"""Files behind fsspec, read in ranges; and what becomes of the errors of whoever serves them."""

import errno
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.store.errors import StoreError

if TYPE_CHECKING:
    from pipeline.store.files import Sliced

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room answers."""


@contextmanager
def answered(where: str, doing: str = "read") -> Iterator[None]:
    """File systems elsewhere raise errors of their clients' own kinds: StoreError in their place.

    What is not there, a full disk here, and sentences of ours go through.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, FileExistsError, StoreError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise StoreError(
            f"Could not {doing} {where}: {said}. See whether the server can be reached and lets you, then go on with "
            "--resume."
        ) from error


class RemoteFile:
    """A file behind fsspec. A large read is one ranged request; small ones share blocks, of which a few are kept."""

    BLOCK = 1 << 16
    KEPT = 64

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        with answered(path):
            self.size = int(fs.info(path)["size"])

    @property
    def slices(self) -> "Sliced":
        """Reads by slices."""
        return _RemoteSlices(self)

    def read(self, start: int, length: int) -> memoryview:
        """The bytes of at most two requests."""
        first, last = start // self.BLOCK, (start + length - 1) // self.BLOCK
        if length == 0 or last - first > 1:
            return memoryview(self._fetched(start, start + length) if length else b"")
        data = b"".join(self._block(number) for number in range(first, last + 1))
        return memoryview(data)[start - first * self.BLOCK :][:length]

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number not in self._blocks:
                end = min((number + 1) * self.BLOCK, self.size)
                self._blocks[number] = self._fetched(number * self.BLOCK, end)
            self._blocks.move_to_end(number)
            while len(self._blocks) > self.KEPT:
                self._blocks.popitem(last=False)
            return self._blocks[number]

    def _fetched(self, start: int, end: int) -> bytes:
        with answered(self._path):
            return bytes(self._fs.cat_file(self._path, start=start, end=end))


@dataclass(frozen=True)
class _RemoteSlices:
    file: RemoteFile

    def __getitem__(self, place: slice) -> memoryview:
        return self.file.read(place.start, place.stop - place.start)
