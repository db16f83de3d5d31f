"""`cla label`: the codes of every pair of a store, as one Parquet file.

The pairs are labelled clip by clip in parts of a few thousand. A finished part is a file of its own in OUT.parts/,
with the SHA-256 of what decides its content, so that an interrupted labelling goes on where it was; at the end the
parts become the row groups of OUT, which is there whole or not at all. The batches that the model sees depend on the
part alone: two runs give equal files, interrupted or not.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.arrays import Array
from pipeline.config import FailedError, RequestError
from pipeline.evaluate.encoding import Encoder
from pipeline.label_file import KEY
from pipeline.store.errors import StoreError
from pipeline.store.files import StoreFiles
from pipeline.store.pairs import PairIndex

PART = 4096
"""Pairs a part, at least; a clip is never cut."""

Mode = Literal["new", "resume", "overwrite"]


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a labelling did: `kept` of the `parts` were there already; `without` clips have no pair."""

    out: Path
    pairs: int
    clips: int
    without: int
    parts: int
    kept: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "out": str(self.out)}

    def lines(self) -> list[str]:
        """For a person."""
        went_on = f", {self.kept} of {self.parts} parts kept from before" if self.kept else ""
        without = f"; {self.without} clips are too short for one" if self.without else ""
        return [f"{self.pairs:,} pairs of {self.clips:,} clips labelled in {self.out}{went_on}{without}"]


def label(
    encoder: Encoder,
    out: Path,
    *,
    embeddings: bool = False,
    mode: Mode = "new",
    part: int = PART,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelSummary:
    """Write the labels of all pairs of the encoder's store at the offset the run was trained with.

    Columns, a row a pair: `clip`, `split`, `frame` and `frame_to` (i4, places of both frames in the clip), `time`
    (f8, seconds of the first), `offset` (f8, seconds to the second), `code_0` … (i2), `distance_0` … (f4, from the
    continuous latent to its code); with `embeddings` also `quantised` and `continuous`, f4 lists of K*L values.

    Args:
        encoder: the run and the store.
        out: the file. Its folder must exist.
        embeddings: keep the latents too.
        mode: `new` refuses a file or parts that are there, `resume` keeps the parts of the same labelling,
            `overwrite` removes both.
        part: pairs a part, at least.
        progress: called with the number of finished parts and of all.

    Raises:
        RequestError: `out` is there and the mode does not say what to do about it; parts of another labelling; no
            pair at the run's offset.
        FailedError: a damaged store, or a disk that is full.
    """
    facts = label_facts(encoder, embeddings=embeddings)
    parts = _Parts(out, hashlib.sha256(json.dumps([facts, part], sort_keys=True).encode()).hexdigest())
    parts.prepare(mode)
    pairs = encoder.pairs()
    spans = list(_spans(pairs, part))
    kept = 0
    for number, rows in enumerate(spans):
        if parts.has(number):
            kept += 1
        else:
            parts.write(number, _table(encoder, pairs, rows, embeddings=embeddings))
        progress(number + 1, len(spans))
    parts.join(len(spans), facts)
    clips = len(np.unique(pairs.clip))
    return LabelSummary(out=out, pairs=len(pairs), clips=clips, without=pairs.without, parts=len(spans), kept=kept)


def label_facts(encoder: Encoder, *, embeddings: bool) -> dict[str, Any]:
    """What the file's metadata says, and what two labellings must share to be the same one."""
    return {
        "run": encoder.run_facts(),
        "store": {"digest": encoder.store.digest, "split": encoder.store.split},
        "offset_seconds": encoder.offset,
        "embeddings": embeddings,
        "concerto_laq": version("concerto-laq"),
    }


def _spans(pairs: PairIndex, part: int) -> Iterator[Array]:
    """Rows of `pairs` for each part: whole clips, in the order of the store."""
    ends = np.flatnonzero(np.diff(pairs.clip, append=-1)) + 1
    start = 0
    for end in ends:
        if end - start >= part or end == len(pairs):
            yield np.arange(start, end)
            start = int(end)


def _table(encoder: Encoder, pairs: PairIndex, rows: Array, *, embeddings: bool) -> pa.Table:
    store = encoder.store
    try:
        latents = encoder.encode(pairs, rows)
    except StoreError as error:
        raise FailedError(f"The store cannot be read: {error} `cla inspect-shards --verify` says more.") from error
    clip, frame = store.clip_of(pairs.first[rows])
    names = {int(c): store.info(int(c)) for c in np.unique(clip)}
    columns: dict[str, Any] = {
        "clip": pa.array([names[int(c)].key for c in clip], pa.string()),
        "split": pa.array([names[int(c)].split for c in clip], pa.string()),
        "frame": frame.astype(np.int32),
        "frame_to": store.clip_of(pairs.second[rows])[1].astype(np.int32),
        "time": store.time[pairs.first[rows]],
        "offset": pairs.apart[rows],
    }
    places = latents.codes.shape[1]
    columns |= {f"code_{k}": latents.codes[:, k].astype(np.int16) for k in range(places)}
    columns |= {f"distance_{k}": latents.distance[:, k] for k in range(places)}
    if embeddings:
        columns |= {name: _lists(getattr(latents, name)) for name in ("quantised", "continuous")}
    return pa.table(columns)


def _lists(latents: Array) -> pa.Array:
    """[n,K,L] as lists of K*L values, place by place."""
    flat = np.ascontiguousarray(latents.reshape(len(latents), -1), dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


class _Parts:
    """The finished parts of a labelling, beside the file that they will become."""

    def __init__(self, out: Path, identity: str) -> None:
        self.out, self.identity = out, identity.encode()
        self.folder = out.with_name(out.name + ".parts")
        self._files = StoreFiles(str(out.parent))

    def prepare(self, mode: Mode) -> None:
        if not self.out.parent.is_dir():
            raise RequestError(f"There is no folder {self.out.parent}: create it, or name another file for --out.")
        if self.out.is_dir():
            raise RequestError(
                f"{self.out} is a folder: name a file for --out, for example {self.out / 'codes.parquet'}."
            )
        if mode == "overwrite":
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        if self.out.exists():
            raise RequestError(f"{self.out} is there already: replace it by --overwrite, or name another --out.")
        if not self.folder.exists():
            return
        if mode == "new":
            raise RequestError(
                f"{self.folder} holds parts of an interrupted labelling: go on with it by --resume, start anew by "
                "--overwrite, or name another --out."
            )
        if any(self._identity(path) != self.identity for path in self.folder.glob("*.parquet")):
            raise RequestError(
                f"{self.folder} holds parts of another labelling (another run, store, split or option): give the same "
                "ones to --resume, or start anew by --overwrite."
            )

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, table: pa.Table) -> None:
        with _explained(), self._files.new_file(f"{self.folder.name}/{self._path(number).name}") as path:
            pq.write_table(table.replace_schema_metadata({KEY: self.identity}), path)

    def join(self, count: int, facts: dict[str, Any]) -> None:
        """Make the file from all parts, a row group each, and remove them."""
        metadata = {KEY: json.dumps(facts, sort_keys=True)}
        with _explained(), self._files.new_file(self.out.name) as path:
            schema = pq.read_schema(self._path(0)).with_metadata(metadata)
            with pq.ParquetWriter(path, schema) as writer:
                for number in range(count):
                    table = pq.read_table(self._path(number))
                    writer.write_table(table.replace_schema_metadata(metadata), row_group_size=len(table))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    @staticmethod
    def _identity(path: Path) -> bytes | None:
        return (pq.read_schema(path).metadata or {}).get(KEY)


@contextmanager
def _explained() -> Iterator[None]:
    """Answer with a sentence when the disk does not take what is written."""
    try:
        yield
    except OSError as error:
        raise FailedError(f"The labels could not be written: {error.strerror or error}.") from error
    except StoreError as error:  # what `StoreFiles` makes of an OSError; its remedy fits here, too
        raise FailedError(f"The labels could not be written. {error}") from error
