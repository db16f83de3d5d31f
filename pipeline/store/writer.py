"""Writes one shard: whole, checked, synced, renamed, then committed by its sidecar."""

import hashlib
from pathlib import Path

import numpy as np

from data_specs.arrays import Array
from data_specs.records import ClipRecord
from data_specs.shards import ArrayEntry, ClipRow, FileEntry, Rejected, Sidecar
from pipeline.store.columns import record_arrays, record_digest, update_crc
from pipeline.store.errors import ShardError, StoreError
from pipeline.store.files import MappedFile
from pipeline.store.layout import StoreLayout, sidecar_bytes, sidecar_name
from pipeline.store.rules import check_record
from pipeline.store.shard import ShardReader, open_shard


class ShardWriter:
    """Collects the clips of one shard in memory and writes them at `commit`. One writer a shard, used once.

    Until `commit` returns nothing of the shard exists for a reader; after it the shard never changes.
    """

    def __init__(self, layout: StoreLayout, shard: str) -> None:
        self.layout, self.shard = layout, shard
        self.nbytes = 0
        """Bytes of the arrays added so far, before compression."""
        self._records: list[ClipRecord] = []
        self._rows: list[ClipRow] = []
        self._rejected: list[Rejected] = []
        self._open = True

    def add(self, record: ClipRecord) -> None:
        """Add a clip. ValueError, naming clip and array, when it breaks a rule of the schema: it is then not added."""
        assert self._open, f"shard {self.shard} is closed"
        check_record(record, self.layout.manifest.sizes)
        if any(row.key == record.key for row in self._rows):
            raise ValueError(f"Clip {record.key!r} is in shard {self.shard} already.")
        if self._records:
            _check_alike(self._records[0], record)
        self._records.append(record)
        self.nbytes += sum(array.nbytes for array in record_arrays(record).values())
        self._rows.append(
            ClipRow(
                key=record.key,
                split=record.split,
                text=record.text,
                frames=len(record),
                time=tuple(record.time.tolist()),
                digest=record_digest(record),
            )
        )

    def reject(self, key: str, reason: str) -> None:
        """Record a clip that is bad data, instead of adding it."""
        assert self._open, f"shard {self.shard} is closed"
        self._rejected.append(Rejected(key=key, reason=reason))

    def commit(self) -> Sidecar:
        """Write the shard and its sidecar. StoreError says what went wrong; nothing of the shard is then left.

        A shard without clips gets a sidecar and no data file.
        """
        assert self._open, f"shard {self.shard} is closed"
        self._open = False
        try:
            file, arrays = self._write_data() if self._records else (None, {})
        except FileExistsError:
            raise self._written_by_another() from None
        sidecar = Sidecar(
            shard=self.shard,
            format=self.layout.manifest.format,
            file=file,
            rows=tuple(self._rows),
            arrays=arrays,
            rejected=tuple(self._rejected),
        )
        files = self.layout.files
        try:
            files.write_bytes(sidecar_name(self.shard), sidecar_bytes(sidecar), new=files.is_object_store)
        except FileExistsError:
            # theirs does not describe the data file, which is ours: the shard counts as not written
            if file is not None:
                files.remove(sidecar_name(self.shard))
            raise self._written_by_another() from None
        self._records.clear()
        return sidecar

    def _written_by_another(self) -> StoreError:
        return StoreError(
            f"Somebody else writes shard {self.shard} of {self.layout.url}, with other bytes: let one extraction, or "
            "one of each partition, write to a store. Go on with --resume when the other has ended."
        )

    def abort(self) -> None:
        """Forget everything that was added."""
        self._open = False
        self._records.clear()

    def _write_data(self) -> tuple[FileEntry, dict[str, ArrayEntry]]:
        store_format = self.layout.manifest.format
        name = self.layout.data_name(self.shard)
        # behind a URL there are no locks: a put that replaces nothing says that somebody else was here
        with self.layout.files.new_file(name, new=self.layout.files.is_object_store) as path:
            if store_format == "zarr":
                from pipeline.store.zarr_writer import write_zarr

                stored = write_zarr(path, self._records)
            else:
                from pipeline.store.tar import write_tar

                stored = write_tar(path, self._records)
            reader = open_shard(MappedFile(str(path)), self.shard, store_format)
            arrays = {
                array: summary.model_copy(update={"bytes": stored[array]})
                for array, summary in summarise(reader).items()
            }
            self._check_written(arrays)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            entry = FileEntry(name=Path(name).name, bytes=path.stat().st_size, sha256=sha256)
        return entry, arrays

    def _check_written(self, arrays: dict[str, ArrayEntry]) -> None:
        """What was read back must be what was added: memory and disks do fail."""
        per_clip = [record_arrays(record) for record in self._records]
        for name in per_clip[0]:
            crc = 0
            for clip in per_clip:
                crc = update_crc(crc, clip[name])
            if arrays[name].crc32 != crc:
                raise ShardError(self.shard, name, "reads back otherwise than it was written; nothing of it was kept")


def summarise(reader: ShardReader) -> dict[str, ArrayEntry]:
    """dtype, shape over all clips and CRC-32 of each array of a shard; `bytes` is 0."""
    return {name: array_entry(reader, name) for name in reader.arrays}


def array_entry(reader: ShardReader, name: str) -> ArrayEntry:
    """One array of a shard; `bytes` is 0. Offsets count as F+1 rows over the shard, whatever the format."""
    crc, rows, nonfinite, last = 0, 0, 0, None
    for clip in range(len(reader.lengths)):
        last = reader.clip_array(name, clip)
        crc = update_crc(crc, last)
        rows += len(last)
        nonfinite += count_nonfinite(last)
    assert last is not None
    if name.endswith("/offset"):
        rows -= len(reader.lengths) - 1
    return ArrayEntry(dtype=last.dtype.str, shape=(rows, *last.shape[1:]), bytes=0, crc32=crc, nonfinite=nonfinite)


def count_nonfinite(array: Array) -> int:
    """Values that are infinite or not a number; 0 for integers."""
    return int(array.size - np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0


def _check_alike(first: ClipRecord, record: ClipRecord) -> None:
    """The clips of a shard hold the same arrays, rows of one shape."""

    def layout(arrays: dict[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (array.dtype.str, array.shape[1:]) for name, array in arrays.items()}

    mine, theirs = layout(record_arrays(record)), layout(record_arrays(first))
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"Clip {record.key!r} has {name} as {mine.get(name, 'nothing')}, clip {first.key!r} of the same shard "
                f"as {theirs.get(name, 'nothing')}: the clips of a store hold the same arrays."
            )
