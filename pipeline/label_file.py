"""The Parquet file of `cla label`: the codes of pairs of frames, and what its metadata says of them.

Columns: see `pipeline.label.label`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.arrays import Array
from pipeline.config import FailedError, RequestError

KEY = b"cla"
"""The entry of the file's metadata that says what the labels are, as JSON."""


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
        metadata = pq.read_schema(path).metadata or {}
        return dict(json.loads(metadata[KEY]))
    except FileNotFoundError:
        raise RequestError(
            f"There is no file {path}: expected one that `cla label --out {path}` has written."
        ) from None
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        raise RequestError(f"{path} is no file of labels: expected one that `cla label` has written.") from None


def read_codes(path: Path) -> Codes:
    """The codes of a file of labels. RequestError when it is not one, FailedError when it is damaged."""
    facts = read_facts(path)
    try:
        names = [name for name in pq.read_schema(path).names if name.startswith("code_")]
        table = pq.read_table(path, columns=["clip", "frame", *names])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise FailedError(f"{path} cannot be read ({str(error).splitlines()[0]}): label the store anew.") from error
    return Codes(
        facts=facts,
        clip=table["clip"].to_pylist(),
        frame=table["frame"].to_numpy().astype(np.int64),
        codes=np.stack([table[name].to_numpy().astype(np.int64) for name in names], axis=1),
    )
