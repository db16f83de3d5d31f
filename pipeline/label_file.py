"""The Parquet file of `cla label`: the codes of pairs of frames, and what its metadata says of them.

Columns: see `pipeline.label.label`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.arrays import Array
from pipeline.bounded_parquet import BadTable, open_parquet, read_parquet, values_of
from pipeline.config import FailedError, RequestError
from pipeline.foreign import BadJson, parse_json, shortened

KEY = b"cla"
"""The entry of the file's metadata that says what the labels are, as JSON."""


MAX_LABELS = 1_000_000_000
"""Pairs of a file of labels."""

MAX_BYTES = 64 << 30
"""Of a file of labels, unpacked."""

MAX_WIDTH = 1 << 16
"""Numbers of a pair's latent."""

_LATENTS = "quantised"

MAX_CODE = 1 << 31
"""Codes and places of frames are below."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The codes of a file.

    Attributes:
        facts: of its metadata: `run`, `store`, `offset_seconds`.
        clip: keys [n]. frame: i8 [n], place of the first frame in its clip. codes: i8 [n,K].
        latents: f4 [n,K*L], the vectors that the codes stand for, where they were asked for.
    """

    facts: dict[str, Any]
    clip: list[str]
    frame: Array
    codes: Array
    latents: Array | None = None


def read_facts(path: Path) -> dict[str, Any]:
    """What the metadata of a file of labels says. RequestError when it is not one."""
    try:
        metadata = open_parquet(path, (), most_rows=MAX_LABELS).schema_arrow.metadata or {}
        facts = parse_json(metadata[KEY])
        _check_facts(facts)
    except FileNotFoundError:
        raise RequestError(
            f"There is no file {path}: expected one that `cla label --out {path}` has written."
        ) from None
    except (OSError, BadTable, BadJson, KeyError, TypeError) as error:
        raise RequestError(
            f"{path} is no file of labels ({shortened(error)}): expected one that `cla label` has written."
        ) from None
    return dict(facts)


def _check_facts(facts: Any) -> None:
    """KeyError or TypeError unless metadata says what a file of labels does."""
    for name, kind in (("run", dict), ("store", dict), ("offset_seconds", int | float)):
        if not isinstance(facts[name], kind):
            raise TypeError(f"{name} is {shortened(repr(facts[name]), 60)}")
    if not isinstance(facts["store"]["digest"], str) or not isinstance(facts["run"]["weights_sha256"], str):
        raise TypeError("no digest of a store, or no checksum of weights")


def read_codes(path: Path, *, latents: bool = False) -> Codes:
    """The codes of a file of labels, and the latents behind them. RequestError when it is not one, or has no latents
    and these are asked for; FailedError when it is damaged.
    """
    facts = read_facts(path)
    try:
        there = open_parquet(path, ()).schema_arrow.names
        names = [name for name in there if name.startswith("code_")]
        if latents and _LATENTS not in there:
            raise RequestError(
                f"{path} has the codes alone, and the vectors that they stand for are needed: label the store anew by "
                "cla label --embeddings."
            )
        more = [_LATENTS] if latents else []
        table = read_parquet(path, ["clip", "frame", *names, *more], most_rows=MAX_LABELS, most_bytes=MAX_BYTES)
        if not names:
            raise BadTable("has no column of codes")
        frame, *codes = (_whole(table, name) for name in ("frame", *names))
        vectors = _vectors(table, _LATENTS) if latents else None
        clip = values_of(table, "clip")
        if not all(isinstance(key, str) for key in clip):
            raise BadTable("has clips without a key")
    except (OSError, BadTable) as error:
        raise FailedError(f"{path} {shortened(error)}: label the store anew.") from error
    return Codes(facts=facts, clip=clip, frame=frame, codes=np.stack(codes, axis=1), latents=vectors)


def _whole(table: Any, name: str) -> Array:
    """A column of whole numbers from 0 on, i8 [n]. BadTable for another."""
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise BadTable(f"has a column {name!r} of {column.type}, expected whole numbers")
    values: Array = column.to_numpy().astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < MAX_CODE:
        raise BadTable(f"has {values.min()} or {values.max()} in column {name!r}, expected 0 to {MAX_CODE}")
    return values


def _vectors(table: Any, name: str) -> Array:
    """A column of lists of one length, f4 [n,D]. BadTable for another."""
    column = table[name]
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise BadTable(f"has a column {name!r} of {kind}, expected lists of one length of float32")
    if not 0 < kind.list_size <= MAX_WIDTH or column.null_count:
        raise BadTable(f"has a column {name!r} of {kind} with {column.null_count} empty, expected none to be")
    parts = [part.flatten() for part in column.chunks]
    if any(part.null_count for part in parts) or sum(len(part) for part in parts) != len(table) * kind.list_size:
        raise BadTable(f"has gaps in column {name!r}")
    values: Array = np.concatenate([np.zeros(0, dtype=np.float32), *(part.to_numpy() for part in parts)])
    if not np.isfinite(values).all():
        raise BadTable(f"has numbers in column {name!r} that are not finite")
    return values.reshape(-1, kind.list_size)
