"""Files of a store in a local folder or behind any fsspec URL: written whole to a temporary name, then renamed."""

import errno
import io
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.store.errors import StoreError, StoreRequestError, TooLarge
from pipeline.store.mapping import map_file
from pipeline.store.remote_file import FULL, RemoteFile, answered

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TEMPORARY = ".tmp-"
"""What marks a file that is being written; a killed run leaves such names and nothing else half done."""

LOCK_MARK = f"{TEMPORARY}lock"
"""How the files end that are locked by whoever writes to a store (`pipeline.store.lock`)."""

_OBJECT_STORES = {"s3", "s3a"}
"""Protocols whose puts are whole and can be conditional. Others get a file under a temporary name, then its own."""

_PIECE = 1 << 23
MAX_FILE = 64 << 30
"""Bytes of a file that is read whole: the instructions of all of Something-Something V2 take 7 thousand million."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class Sliced(Protocol):
    """Bytes that are read by slices start:stop, both inside."""

    def __getitem__(self, place: slice, /) -> memoryview: ...


class ByteSource(Protocol):
    """A file that is read in ranges."""

    size: int

    @property
    def slices(self) -> Sliced:
        """The same bytes by slices: without any call where the file is mapped."""
        ...

    def read(self, start: int, length: int) -> memoryview:
        """Bytes start:start+length; the caller has checked that they are inside."""
        ...


class MappedFile:
    """A local file in memory by mmap: reading copies nothing, and the page cache is shared by all processes.

    Views of it keep the mapping; nothing keeps the file open, so that a process can map the shards of a large store.
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self.slices = map_file(file.fileno(), self.size)

    def read(self, start: int, length: int) -> memoryview:
        """A view of the mapped bytes."""
        return self.slices[start : start + length]


class SourceIO(io.RawIOBase):
    """A `ByteSource` as a file object for libraries that want one."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; OSError before the start, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start of the file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where the next read starts."""
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill `buffer` as far as the file goes."""
        target = memoryview(buffer).cast("B")
        length = max(0, min(len(target), self._source.size - self._at))
        target[:length] = self._source.read(self._at, length)
        self._at += length
        return length


@dataclass(frozen=True)
class StoreFiles:
    """Files by their name relative to `url`. Holds no handle, so that it can be pickled and forked."""

    url: str

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self._fs_root()[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """Where a file is, in its file system."""
        return f"{self._fs_root()[1].rstrip('/')}/{name}" if name else self._fs_root()[1]

    def _fs_root(self) -> tuple[Any, str]:
        # fsspec caches instances by process, so that asking again is cheap and a forked worker gets its own
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            protocol = self.url.partition("://")[0]
            extra = _EXTRAS.get(protocol)
            remedy = f"pip install 'concerto-laq[{extra}]'" if extra else f"install what fsspec asks for ({error})"
            raise StoreRequestError(f"{self.url} needs a package that is not installed: {remedy}.") from error
        except ValueError as error:
            raise StoreRequestError(f"{self.url} is no folder and no URL that fsspec knows ({error}).") from error
        return fs, str(root)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        if self.is_local:
            yield
            return
        with answered(f"{self.url.rstrip('/')}/{name}"):
            yield

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        fs, _ = self._fs_root()
        fs.invalidate_cache()  # others write, too
        with self._reading(name):
            return bool(fs.exists(self.path(name)))

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; empty where there is no folder."""
        fs, _ = self._fs_root()
        fs.invalidate_cache()
        try:
            with self._reading(folder):
                entries = fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise StoreRequestError(f"{self.url} is a file: expected a folder.") from None
        own = self.path(folder).rstrip("/")
        return sorted({str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries if str(e).rstrip("/") != own})

    def read_bytes(self, name: str, *, limit: int = MAX_FILE) -> bytes:
        """A whole file. FileNotFoundError where there is none; TooLarge, before it is read, for more than `limit`."""
        fs, path = self._fs_root()[0], self.path(name)
        if self.is_local and (size := Path(path).stat().st_size) > limit:
            raise TooLarge(f"{self.url}/{name} has {size:,} bytes, expected at most {limit:,}: it is not of a store.")
        with self._reading(name):
            data = bytes(fs.cat_file(path))
        if len(data) <= limit:
            return data
        raise TooLarge(f"{self.url}/{name} is longer than {limit:,} bytes: it is not of a store.")

    def size(self, name: str) -> int:
        """Bytes of a file. FileNotFoundError where there is none."""
        with self._reading(name):
            return int(self._fs_root()[0].info(self.path(name))["size"])

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Whole files; a remote file system fetches them together."""
        if self.is_local or not names:
            return {name: self.read_bytes(name) for name in names}
        with self._reading(names[0]):
            found = self._fs_root()[0].cat([self.path(name) for name in names])
        by_name = {path.rsplit("/", 1)[-1]: data for path, data in found.items()}
        return {name: by_name[name.rsplit("/", 1)[-1]] for name in names}

    def source(self, name: str) -> ByteSource:
        """Open a file for reading in ranges."""
        return MappedFile(self.path(name)) if self.is_local else RemoteFile(self._fs_root()[0], self.path(name))

    def copy_to(self, name: str, path: Path) -> None:
        """Write a whole file to a local path. FileNotFoundError where there is none, StoreError for other trouble."""
        with self._reading(name):
            self._fs_root()[0].get_file(self.path(name), str(path))

    def remove(self, name: str) -> None:
        """Remove a file, or an empty folder."""
        with self._explained(name):
            self._fs_root()[0].rm(self.path(name))

    def write_bytes(self, name: str, data: bytes, *, new: bool = False) -> None:
        """Write a small file so that it is there whole or not at all.

        With `new`, FileExistsError where there is such a file already: of several who write it at once, one does.
        """
        with self.new_file(name, new=new) as path:
            _write(path, data)

    @contextmanager
    def new_file(self, name: str, *, new: bool = False) -> Iterator[Path]:
        """A local path to write; when the block ends well the file has its name, else nothing is left of it.

        In a local store the path is in the same folder, is synced and renamed; a remote store gets the finished file
        by upload: an object store by one put, others to a temporary name. StoreError says in a sentence what could not
        be written; with `new` FileExistsError that the name is taken.
        """
        with self._explained(name, new=new):
            if not self.is_local:
                with tempfile.TemporaryDirectory(prefix="cla-") as folder:
                    path = Path(folder) / "file"
                    yield path
                    with answered(f"{self.url.rstrip('/')}/{name}", "write"):
                        self._upload(path, name, new=new)
                return
            target = Path(self.path(name))
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                _sync(target.parent.parent)
            path = target.with_name(target.name + TEMPORARY + uuid.uuid4().hex[:8])
            try:
                yield path
                _sync(path)
                if new:
                    target.hardlink_to(path)  # unlike a rename, not over a file that is there
                else:
                    path.replace(target)
                _sync(target.parent)
            finally:
                path.unlink(missing_ok=True)

    def _upload(self, path: Path, name: str, *, new: bool) -> None:
        fs, _ = self._fs_root()
        target = self.path(name)
        if _is_object_store(fs):
            try:
                # one request, or parts that become an object together: it is there whole or not at all
                fs.put_file(str(path), target, mode="create" if new else "overwrite")
            except FileExistsError:
                # perhaps by ourselves: the request was repeated after its answer was lost
                if not _same_content(fs, target, path):
                    raise
            if int(fs.info(target, refresh=True)["size"]) != path.stat().st_size:
                raise StoreError(f"{self.url}/{name} arrived cut short, or somebody else writes it: try again.")
            return
        if new and fs.exists(target):
            raise FileExistsError(name)
        temporary = target + TEMPORARY + uuid.uuid4().hex[:8]
        try:
            fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(path), temporary)
            if int(fs.info(temporary)["size"]) != path.stat().st_size:
                raise StoreError(f"{self.url}/{name} arrived cut short. Nothing of it was kept: try again.")
            fs.mv(temporary, target)
        finally:
            if fs.exists(temporary):
                fs.rm(temporary)

    @property
    def is_object_store(self) -> bool:
        """Whether files are objects that are put whole, and put only where there is none if that is asked for."""
        return _is_object_store(self._fs_root()[0])

    @contextmanager
    def _explained(self, name: str, *, new: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if new and isinstance(error, FileExistsError):
                raise
            where = f"{self.url.rstrip('/')}/{name}"
            if error.errno in FULL:
                raise StoreError(
                    f"No room to write {where} ({error.strerror}). Nothing of it was kept, shards committed before are "
                    "whole: free some space, then go on with --resume."
                ) from error
            raise StoreError(f"Could not write {where}: {error.strerror or error}.") from error


def _is_object_store(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not _OBJECT_STORES.isdisjoint(protocols)


def _same_content(fs: Any, target: str, path: Path) -> bool:
    if int(fs.info(target, refresh=True)["size"]) != path.stat().st_size:
        return False
    with path.open("rb") as mine, fs.open(target, "rb", cache_type="none") as theirs:
        return all(theirs.read(len(piece)) == piece for piece in iter(lambda: mine.read(_PIECE), b""))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a rename never survives what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
