"""One extraction at a time writes to a store; the parts of a divided one may do so together."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.store.errors import StoreError, StoreRequestError
from pipeline.store.files import LOCK_MARK, StoreFiles

_WHOLE = "writing"
_TRIES, _PAUSE_S = 20, 0.05
"""Somebody who ends holds the file for a moment longer; somebody who works holds it for long."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def write_lock(url: str, part: str = "") -> Iterator[None]:
    """Hold a local store for writing, while the block runs; the system lets go of it when the process dies.

    An empty file in the store's folder is locked (`flock`) and removed in the end. Behind a URL there is no lock:
    there a shard is written by whoever commits it last, whole.

    Args:
        url: the store, or where it is to be; its folder is made.
        part: what distinguishes writers that share the store, each with shards of its own (`1-of-4`); "" for a writer
            that has it alone.

    Raises:
        StoreRequestError: another process writes to the store, or to that part of it.
        StoreError: the folder cannot be made or written to.
    """
    files = StoreFiles(str(url))
    if not files.is_local:
        yield
        return
    folder = Path(files.path(""))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreRequestError(f"{url} is a file: expected a folder.") from None
    except OSError as error:
        raise StoreError(f"Could not write {url}: {error.strerror}.") from error
    with _held(folder, _WHOLE + LOCK_MARK, url, shared=bool(part)):
        if not part:
            yield
            return
        with _held(folder, f"{_WHOLE}-{part}{LOCK_MARK}", url, shared=False):
            _refuse_other_division(folder, part, url)
            yield


def refuse_busy(url: str, part: str = "") -> None:
    """StoreRequestError when another process writes to a store that exists, as `write_lock` would say."""
    files = StoreFiles(str(url))
    if files.is_local and files.exists(""):
        with write_lock(url, part):
            pass


def _refuse_other_division(folder: Path, part: str, url: str) -> None:
    """Parts of another number hold some of the same shards. One's own lock is held: of two, one sees the other."""
    division = part.rpartition("-of-")[2]
    for path in sorted(folder.glob(f"{_WHOLE}-*{LOCK_MARK}")):
        other = path.name.removeprefix(f"{_WHOLE}-").removesuffix(LOCK_MARK)
        if other.rpartition("-of-")[2] != division and _is_held(path):
            raise StoreRequestError(
                f"A process writes part {other} of {url} ({_holder(path)}), this one would write {part}: divide the "
                "work by one number, or wait for the end of the others."
            )


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _held(folder: Path, name: str, url: str, *, shared: bool) -> Iterator[None]:
    path = folder / name
    try:
        descriptor = _acquire(path, shared=shared)
    except BlockingIOError:
        raise StoreRequestError(
            f"Another process writes to {url} ({_holder(path)}): wait for its end, or stop it and go on with --resume."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise StoreError(f"Could not write {path}: {error.strerror}.") from error
        sys.stderr.write(f"warning: {url} is on a file system without locks: let no second extraction write to it\n")
        yield
        return
    try:
        yield
    finally:
        try:
            # of several that share it the last one removes it, with what killed ones have left
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(f"{_WHOLE}-*{LOCK_MARK}") if name == _WHOLE + LOCK_MARK else ():
                left.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError:
            pass  # others hold it too, or the file system became unwritable: a lock that nobody holds does no harm
        finally:
            os.close(descriptor)


def _acquire(path: Path, *, shared: bool) -> int:
    """A descriptor that holds the lock. BlockingIOError when somebody else keeps it."""
    for attempt in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                if not shared:
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                return descriptor
        except BlockingIOError:
            if attempt == _TRIES - 1:
                os.close(descriptor)
                raise
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # held for now, or removed by whoever held it before: another file has the name
        time.sleep(_PAUSE_S)
    raise BlockingIOError(errno.EAGAIN, "another process takes the lock again and again")


def _holder(path: Path) -> str:
    try:
        values = json.loads(path.read_bytes())
        return f"process {int(values['pid'])} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "several processes share it, or it has just begun"
