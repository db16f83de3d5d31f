"""Whole shards of a store that is far away, kept in a local folder of bounded size."""

import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data_specs.shards import FileEntry
from pipeline.store.errors import ShardError, StoreError, StoreRequestError
from pipeline.store.files import MappedFile
from pipeline.store.layout import StoreLayout

_NAME = re.compile(r"[0-9a-f]{40}-(\d+)\.\w+(?:\.part)?")
_PART = ".part"
_LOCK = ".lock"
_TRIES = 3
_PAUSE_S = 0.05
_PATIENCE_S = 600.0
"""How long to wait for room that downloads of others take."""


class ShardCache:
    """Local copies of shards; those that were used least recently make room for new ones.

    A file is named by its SHA-256 and size, so that stores may share a folder and one that was written anew is not
    mixed up with the old one. Processes of one machine may share it too: each shard comes once, whoever asks. A copy
    is there whole and checked or not at all; what a killed process left is removed.

    Args:
        folder: where; made if it is not there.
        size: bytes of all files in it, downloads that are under way among them. Somebody who has mapped a file that
            has made room keeps it on the disk until it opens the next one.
        threads: downloads at a time, ahead of what is being read.
    """

    def __init__(self, folder: str | Path, size: int, *, threads: int = 2) -> None:
        if size <= 0:
            raise StoreRequestError(f"a cache of {size} bytes makes no sense: expected a number above 0")
        self.folder, self.size, self.threads = Path(folder), size, threads
        self.folder.mkdir(parents=True, exist_ok=True)
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._entries: dict[tuple[str, str], FileEntry] = {}
        self._coming: dict[Path, Future[Path]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "size": self.size, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.size, self.threads = state["folder"], state["size"], state["threads"]
        self._reset()

    def bytes_of(self, layout: StoreLayout, shard: str) -> int:
        """Size of a shard's data file."""
        return self._entry(layout, shard).bytes

    def open(self, layout: StoreLayout, shard: str) -> "CachedFile":
        """A shard as a mapped local file, fetched if it is not there.

        Raises:
            ShardError: it is missing, or arrived otherwise than it was committed, again and again.
            StoreRequestError: it is larger than the cache. StoreError: the folder cannot be written to.
        """
        self._own_process()
        path = self._path(layout, shard)
        while True:
            coming = self._coming.get(path)
            if coming is not None:
                coming.result()
            found = self._fetch(layout, shard)
            try:
                return CachedFile(found)
            except FileNotFoundError:  # another process made room in between
                continue

    def ahead(self, layout: StoreLayout, shards: Sequence[str]) -> None:
        """Fetch these shards in the background, in that order; what is there already counts as used just now.

        What goes wrong is raised when the shard is opened.
        """
        self._own_process()
        for shard in shards:
            path = self._path(layout, shard)
            if _touch(path):
                continue
            with self._lock:
                if path in self._coming:
                    continue
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="cla-cache")
                self._coming[path] = self._pool.submit(self._fetch, layout, shard)
                self._coming[path].add_done_callback(partial(self._came, path))

    def used(self) -> int:
        """Bytes that the folder holds or has set aside."""
        with self._locked_folder():  # or room made and taken while the folder is listed would both count
            return sum(_size(path) for path in self._files())

    def close(self) -> None:
        """Fetch nothing more; wait for what is under way."""
        pool, self._pool = self._pool, None
        if pool is not None and self._process == os.getpid():
            pool.shutdown(cancel_futures=True)
        self._coming.clear()

    def _came(self, path: Path, _: "Future[Path]") -> None:
        with self._lock:
            self._coming.pop(path, None)

    def _own_process(self) -> None:
        if self._process != os.getpid():  # threads do not survive a fork
            self._reset()

    def _entry(self, layout: StoreLayout, shard: str) -> FileEntry:
        key = layout.url, shard
        if key not in self._entries:
            try:
                entry = layout.sidecar(shard).file
            except FileNotFoundError:
                entry = None
            if entry is None:
                raise ShardError(shard, None, "has no sidecar that names a data file")
            self._entries[key] = entry
        return self._entries[key]

    def _path(self, layout: StoreLayout, shard: str) -> Path:
        entry = self._entry(layout, shard)
        return self.folder / f"{entry.sha256[:40]}-{entry.bytes}{Path(layout.data_name(shard)).suffix}"

    def _fetch(self, layout: StoreLayout, shard: str) -> Path:
        entry, path = self._entry(layout, shard), self._path(layout, shard)
        if entry.bytes > self.size:
            raise StoreRequestError(
                f"Shard {shard} of {layout.url} has {entry.bytes:,} bytes, the cache in {self.folder} holds "
                f"{self.size:,}: give it more room."
            )
        part = path.with_name(path.name + _PART)
        until = time.monotonic() + _PATIENCE_S
        while not _touch(path):
            with self._room_for(path, part) as held:
                if held is not None:
                    self._download(layout, shard, entry, part)
                    os.fsync(held)
                    with self._locked_folder():  # or who counts at this moment finds neither the one nor the other
                        part.replace(path)
            if held is None:
                if time.monotonic() > until:
                    raise StoreError(
                        f"The cache in {self.folder} has had no room for shard {shard} for {_PATIENCE_S:.0f} s: "
                        "give it more room, or let fewer processes share it."
                    )
                time.sleep(_PAUSE_S)
        return path

    @contextmanager
    def _room_for(self, path: Path, part: Path) -> Iterator[int | None]:
        """Room set aside for `part`, held locked; None while another one downloads it, has done so, or has the room."""
        held = None
        with self._locked_folder():
            if not path.exists() and self._evict(part):
                held = _lock(part)
        try:
            yield held
        except BaseException:
            if held is not None:
                part.unlink(missing_ok=True)
            raise
        finally:
            if held is not None:
                os.close(held)

    def _evict(self, part: Path) -> bool:
        """Whether there is room for `part`, after the files used least recently have gone if need be."""
        files = [path for path in self._files() if path != part]
        for path in files:
            if path.suffix == _PART and (held := _lock(path)) is not None:  # nobody downloads it any more
                path.unlink(missing_ok=True)
                os.close(held)
        files = [path for path in files if path.exists()]
        room = self.size - _size(part) - sum(_size(path) for path in files)
        whole = [path for path in files if path.suffix != _PART]
        for path in sorted(whole, key=lambda path: path.stat().st_mtime_ns):
            if room >= 0:
                break
            room += _size(path)
            path.unlink(missing_ok=True)
        return room >= 0

    def _download(self, layout: StoreLayout, shard: str, entry: FileEntry, part: Path) -> None:
        problem = ""
        for number in range(_TRIES):
            time.sleep(number * _PAUSE_S)
            try:
                if (size := layout.files.size(layout.data_name(shard))) > entry.bytes:
                    problem = f"is longer than it was committed ({size:,} of {entry.bytes:,} bytes)"
                    continue
                layout.files.copy_to(layout.data_name(shard), part)
            except FileNotFoundError as error:
                if not part.exists():
                    raise StoreError(f"The cache folder {self.folder} is gone.") from error
                raise ShardError(shard, None, f"its data file {layout.data_name(shard)} is missing") from None
            except (OSError, StoreError) as error:
                problem = f"does not arrive ({error})"
                continue
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                    return
            problem = f"arrives otherwise than it was committed ({part.stat().st_size:,} of {entry.bytes:,} bytes)"
        raise ShardError(shard, None, f"{problem}, {_TRIES} times")

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]


class CachedFile(MappedFile):
    """A mapped local copy; `path` is where it was."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    @property
    def gone(self) -> bool:
        """Whether it has made room: its bytes stay on the disk for as long as this holds them."""
        return not self.path.exists()


def _touch(path: Path) -> bool:
    """Mark a file as just used; whether it is there, and whole: a machine that lost its power may have cut it off."""
    now = time.time_ns()  # the system's own idea of now moves in steps of some milliseconds
    try:
        os.utime(path, ns=(now, now))
        whole = path.stat().st_size == _size(path)
    except FileNotFoundError:
        return False
    if not whole:
        path.unlink(missing_ok=True)
    return whole


def _size(path: Path) -> int:
    """What a file takes or will take, by its name."""
    found = _NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def _lock(path: Path) -> int | None:
    """A locked descriptor of a file, made if need be; None where another one holds it. The folder is locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
