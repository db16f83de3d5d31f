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

MAX_CODE = 1 << 31
"""Codes and places of frames are below."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The codes of a file.

    Attributes:
        facts: of its metadata: `run`, `store`, `offset_seconds`.
        clip: keys [n]. frame: i8 [n], place of the first frame in its clip. codes: i8 [n,K].
    """

    facts: dict[str, Any]
    clip: list[str]
    frame: Array
    codes: Array


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


def read_codes(path: Path) -> Codes:
    """The codes of a file of labels. RequestError when it is not one, FailedError when it is damaged."""
    facts = read_facts(path)
    try:
        names = [name for name in open_parquet(path, ()).schema_arrow.names if name.startswith("code_")]
        table = read_parquet(path, ["clip", "frame", *names], most_rows=MAX_LABELS, most_bytes=MAX_BYTES)
        if not names:
            raise BadTable("has no column of codes")
        frame, *codes = (_whole(table, name) for name in ("frame", *names))
        clip = values_of(table, "clip")
        if not all(isinstance(key, str) for key in clip):
            raise BadTable("has clips without a key")
    except (OSError, BadTable) as error:
        raise FailedError(f"{path} {shortened(error)}: label the store anew.") from error
    return Codes(facts=facts, clip=clip, frame=frame, codes=np.stack(codes, axis=1))


def _whole(table: Any, name: str) -> Array:
    """A column of whole numbers from 0 on, i8 [n]. BadTable for another."""
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise BadTable(f"has a column {name!r} of {column.type}, expected whole numbers")
    values: Array = column.to_numpy().astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < MAX_CODE:
        raise BadTable(f"has {values.min()} or {values.max()} in column {name!r}, expected 0 to {MAX_CODE}")
    return values
