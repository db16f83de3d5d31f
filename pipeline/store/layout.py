"""Where the parts of a store are, which shards are committed, and who may write to it."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_specs.shards import LANGUAGE, SUFFIX, Manifest, Rejected, Sidecar, differing_keys
from pipeline.store.errors import ShardError, StoreError, StoreRequestError, TooLarge
from pipeline.store.files import LOCK_MARK, TEMPORARY, ByteSource, StoreFiles
from pipeline.store.index import index_bytes, index_shards, index_table, read_index
from pipeline.store.metadata import MAX_TEXT_FILE, parse_manifest, parse_sidecar

MANIFEST, INDEX, REJECTED, SHARDS = "manifest.json", "index.parquet", "rejected.jsonl", "shards"

SUMS = "SHA256SUMS"
"""Checksums of all other files (`pipeline.store.sums`)."""

_TOGETHER = 256
"""Sidecars that are fetched at a time."""

Mode = Literal["new", "resume", "overwrite", "join"]


@dataclass(frozen=True)
class StoreLayout:
    """A store that exists: its URL and its manifest. Holds no handle; picklable, safe to fork.

    Shards are named by whoever writes them (`000012`); names sort in the order in which the store reads them.
    """

    url: str
    manifest: Manifest

    @classmethod
    def create(cls, url: str, manifest: Manifest, mode: Mode = "new") -> "StoreLayout":
        """Start a store, or go on with it.

        Args:
            url: a folder or any fsspec URL.
            manifest: what it is to be made from.
            mode: `new` refuses a store that exists, `resume` goes on with one that is made from the same (and starts
                one where there is none), `overwrite` removes what a store there holds; `join` is `resume` for several
                who begin at once: one of them starts the store, the others compare.

        Raises:
            StoreRequestError: a store exists, is made from something else, or the folder holds other things.
        """
        files = StoreFiles(str(url))
        if mode == "join":
            return cls._join(url, manifest)
        if not files.exists(MANIFEST):
            _refuse_foreign(files)
        elif mode == "new":
            refuse_existing(url)
        elif mode == "resume":
            refuse_other(url, cls.open(url).manifest, manifest)
            return cls.open(url)
        else:
            _clear(files)
        layout = cls(url=str(url), manifest=manifest)
        files.write_bytes(MANIFEST, manifest_bytes(manifest))
        return layout

    @classmethod
    def _join(cls, url: str, manifest: Manifest) -> "StoreLayout":
        files = StoreFiles(str(url))
        try:
            if not files.exists(MANIFEST):
                _refuse_foreign(files)
                files.write_bytes(MANIFEST, manifest_bytes(manifest), new=True)
                return cls(url=str(url), manifest=manifest)
        except (FileExistsError, StoreRequestError):
            if not files.exists(MANIFEST):
                raise
            # somebody else has just started it
        layout = cls.open(url)
        refuse_other(url, layout.manifest, manifest)
        return layout

    @classmethod
    def open(cls, url: str) -> "StoreLayout":
        """An existing store. StoreRequestError when there is none, or it has another schema version."""
        files = StoreFiles(str(url))
        try:
            data = files.read_bytes(MANIFEST, limit=MAX_TEXT_FILE)
        except (FileNotFoundError, NotADirectoryError):
            what = "There is nothing" if not files.exists("") else "There is no manifest.json"
            raise StoreRequestError(
                f"{what} at {url}: expected a store, a folder that `cla extract --out {url}` has written."
            ) from None
        return cls(url=str(url), manifest=parse_manifest(data, f"{url}/{MANIFEST}"))

    @property
    def files(self) -> StoreFiles:
        """The files of the store."""
        return StoreFiles(self.url)

    def committed(self) -> list[str]:
        """Names of the committed shards, sorted: those that have a sidecar."""
        names = self.files.names(SHARDS)
        return sorted(n.removesuffix(".json") for n in names if n.endswith(".json") and TEMPORARY not in n)

    def sidecar(self, shard: str) -> Sidecar:
        """The sidecar of a committed shard. ShardError when it is damaged."""
        return self.parsed(shard, self._sidecar_file(shard))

    def sidecars(self, shards: Sequence[str] | None = None) -> Iterator[Sidecar]:
        """The sidecars of these committed shards, of all by name without them; in their order.

        They come one by one: those of a million clips together would take gigabytes of memory.
        """
        for shard, data in self.sidecar_files(shards):
            yield self.parsed(shard, data)

    def sidecar_files(self, shards: Sequence[str] | None = None) -> Iterator[tuple[str, bytes]]:
        """The same as (shard, content of its file)."""
        shards = self.committed() if shards is None else shards
        for start in range(0, len(shards), _TOGETHER):
            group = shards[start : start + _TOGETHER]
            names = [sidecar_name(shard) for shard in group]
            data = {} if self.files.is_local else self.files.read_many(names)
            for shard, name in zip(group, names, strict=True):
                yield shard, data.pop(name) if data else self._sidecar_file(shard)

    def _sidecar_file(self, shard: str) -> bytes:
        try:
            return self.files.read_bytes(sidecar_name(shard), limit=MAX_TEXT_FILE)
        except TooLarge as error:
            raise ShardError(shard, None, f"its sidecar is damaged ({error})") from error

    def parsed(self, shard: str, data: bytes) -> Sidecar:
        """The sidecar of a shard from the content of its file. ShardError when it is damaged."""
        try:
            sidecar = parse_sidecar(data, sidecar_name(shard))
        except StoreError as error:
            raise ShardError(shard, None, f"its sidecar is damaged ({error})") from error
        if sidecar.shard != shard or sidecar.format != self.manifest.format:
            raise ShardError(shard, None, f"its sidecar is of shard {sidecar.shard}, format {sidecar.format}")
        return sidecar

    def done_keys(self) -> set[str]:
        """Keys of the clips that are in committed shards."""
        return {row.key for sidecar in self.sidecars() for row in sidecar.rows}

    def rejected(self) -> list[Rejected]:
        """Clips that were bad when last tried, by key; those that a later shard holds are left out."""
        return current_rejections(self.sidecars())

    def data_name(self, shard: str) -> str:
        """Name of a shard's data file, relative to the store."""
        return f"{SHARDS}/{shard}{SUFFIX[self.manifest.format]}"

    def shard_of(self, name: str) -> str | None:
        """The shard whose data file has this name, relative to the store; None for another file."""
        suffix = SUFFIX[self.manifest.format]
        whole = name.startswith(f"{SHARDS}/") and name.endswith(suffix)
        return name[len(SHARDS) + 1 : -len(suffix)] if whole else None

    def source(self, shard: str) -> ByteSource:
        """A shard's data file, for reading. ShardError when it is missing."""
        try:
            return self.files.source(self.data_name(shard))
        except FileNotFoundError:
            raise ShardError(shard, None, f"its data file {self.data_name(shard)} is missing") from None

    def index(self, columns: Sequence[str] | None = None) -> Any:
        """The index as a `pyarrow.Table`, or some columns of it: from its file where that is up to date, else from the
        sidecars. A local file is mapped, and of a file only the columns asked for are decoded."""
        files, shards = self.files, self.committed()
        try:
            source = files.source(INDEX)
            table = read_index(source.read(0, source.size), columns)
            if index_shards(table) == shards:
                return table
        except (FileNotFoundError, StoreError):
            pass  # the index is a cache: the sidecars say the same
        table = index_table(self.sidecars())
        return table if columns is None else table.select(list(columns))

    def write_index(self) -> None:
        """Rebuild `index.parquet` from the sidecars."""
        self.files.write_bytes(INDEX, index_bytes(index_table(self.sidecars())))

    def write_rejected(self) -> None:
        """Rebuild `rejected.jsonl` from the sidecars: a line {key, reason} a clip, by key; empty when none is bad."""
        self.files.write_bytes(REJECTED, rejected_bytes(self.rejected()))

    def with_statistics(self, statistics: dict[str, Any]) -> "StoreLayout":
        """Write the manifest anew with statistics of state and action."""
        layout = replace(self, manifest=self.manifest.model_copy(update={"statistics": statistics}))
        layout.files.write_bytes(MANIFEST, manifest_bytes(layout.manifest))
        return layout

    def remove_leftovers(self, shards: Collection[str] | None = None) -> list[str]:
        """Remove what a killed run left: temporary files, and data files without a sidecar. Returns their names.

        For the one process that is about to write, before its writers start; or for the one that is about to write
        these `shards`, while others write others.
        """
        committed = set(self.committed())
        gone = []
        for folder in ("", SHARDS) if shards is None else (SHARDS,):
            for name in self.files.names(folder):
                whole = name.partition(TEMPORARY)[0]
                stem = whole.removesuffix(SUFFIX[self.manifest.format])
                if shards is not None and stem.removesuffix(".json") not in shards:
                    continue
                uncommitted = folder == SHARDS and stem != whole and stem not in committed
                if (TEMPORARY in name and not name.endswith(LOCK_MARK)) or uncommitted:
                    gone.append(f"{folder}/{name}" if folder else name)
        for name in gone:
            self.files.remove(name)
        return gone


def refuse_existing(url: str) -> None:
    """StoreRequestError when there is a store at `url` already."""
    if StoreFiles(str(url)).exists(MANIFEST):
        raise StoreRequestError(
            f"There is a store at {url} already: go on with it by --resume, replace it by --overwrite, or name "
            "another --out."
        )


def refuse_other(url: str, old: Manifest, new: Manifest) -> None:
    """StoreRequestError, naming the keys that differ, unless a store made from `old` may go on with `new`."""
    names = differing_keys(old, new)
    if names:
        raise StoreRequestError(
            f"The store at {url} was made with other settings; these differ: {', '.join(names)}. Give the same ones to "
            "--resume, replace the store by --overwrite, or name another --out."
        )


def sidecar_name(shard: str) -> str:
    """Name of a shard's sidecar, relative to the store."""
    return f"{SHARDS}/{shard}.json"


def current_rejections(sidecars: Iterable[Sidecar]) -> list[Rejected]:
    """The last rejection of each clip that no shard holds, by key."""
    done: set[str] = set()
    last: dict[str, Rejected] = {}
    for sidecar in sidecars:
        done.update(row.key for row in sidecar.rows)
        last |= {bad.key: bad for bad in sidecar.rejected}
    return [last[key] for key in sorted(last) if key not in done]


def rejected_bytes(rejected: Iterable[Rejected]) -> bytes:
    """The content of `rejected.jsonl`."""
    return "".join(json.dumps(bad.model_dump(), ensure_ascii=False) + "\n" for bad in rejected).encode()


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """The content of a sidecar file."""
    return (json.dumps(sidecar.model_dump(mode="json"), allow_nan=False) + "\n").encode()


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()


def _refuse_foreign(files: StoreFiles) -> None:
    others = [name for name in files.names() if TEMPORARY not in name and name != SHARDS]
    if not others and not files.names(SHARDS):
        return
    shown = ", ".join((others or [SHARDS])[:3])
    raise StoreRequestError(f"{files.url} is not empty and is no store (it holds {shown}): name another --out.")


def _clear(files: StoreFiles) -> None:
    """Remove a store's content. The manifest goes last, by replacement, so that a killed run can be tried again."""
    for name in (SUMS, INDEX, REJECTED, LANGUAGE):
        if files.exists(name):
            files.remove(name)
    suffixes = (".json", *SUFFIX.values())
    names = [name for name in files.names(SHARDS) if name.endswith(suffixes) or TEMPORARY in name]
    # sidecars first: a shard is not committed before it is gone
    for name in sorted(names, key=lambda name: not name.endswith(".json")):
        files.remove(f"{SHARDS}/{name}")
    for name in files.names():
        if TEMPORARY in name and not name.endswith(LOCK_MARK):
            files.remove(name)
