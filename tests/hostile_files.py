"""Files as an attacker would make them, from small valid ones."""

import io
import json
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.store.files import MappedFile
from pipeline.store.shard import FileShard, open_shard

MEGABYTES = 48
"""What reading a hostile file may take: far less than it claims, and more than the valid ones need."""


@contextmanager
def little_memory(megabytes: int = MEGABYTES) -> Iterator[None]:
    """Fails when Python (numpy with it) has taken more at any time in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes << 20, f"{peak >> 20} MB were taken"


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of `size` bytes that begins with `head` and takes no room."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """The file with what `change` makes of its value, in place or returned."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def rewrite_zip(
    path: Path,
    changed: Mapping[str, bytes] | None = None,
    *,
    more: Mapping[str, bytes] | None = None,
    again: str | None = None,
    method: int = zipfile.ZIP_STORED,
) -> None:
    """The ZIP with the content of some members changed, others added, one of them a second time."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    assert set(changed or {}) <= {name for name, _ in members}
    members = [(name, (changed or {}).get(name, data)) for name, data in members]
    members += list((more or {}).items())
    members += [(name, data) for name, data in members if name == again]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, method)


def zip_member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def rewrite_tar(
    path: Path,
    change: Callable[[tarfile.TarInfo, bytes], bytes | None] = lambda entry, data: data,
    more: Mapping[str, bytes] | None = None,
) -> None:
    """The tar with what `change` makes of each entry and its content (None: left out), and more members."""
    with tarfile.open(path) as archive:
        members = [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
    members += [(tarfile.TarInfo(name), data) for name, data in (more or {}).items()]
    with tarfile.open(path, "w") as archive:
        for entry, data in members:
            changed = change(entry, data)
            if changed is not None:
                entry.size = len(changed) if entry.isreg() else 0
                archive.addfile(entry, io.BytesIO(changed))


def read_shard(path: Path, store_format: Any) -> FileShard:
    """Open a shard's file and read all of it."""
    shard = open_shard(MappedFile(str(path)), "000000", store_format)
    for clip in range(len(shard.lengths)):
        shard.clip_arrays(clip)
    return shard
