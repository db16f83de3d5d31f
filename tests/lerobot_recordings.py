"""Recordings in LeRobot's formats, and how tests damage and read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sources.base import Source

EVERY = FrameSampling(fps=None, max=0, size=32)
FORMATS = ("lerobot", "lerobot-v2.1")
Recordings = dict[str, Path]


def read_all(source: Source) -> dict[str, str]:
    """The reason of every bad clip."""
    bad = {}
    for ref in source.clips():
        try:
            source.read(ref, EVERY)
        except BadClip as error:
            bad[error.key] = error.reason
    return bad


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_table(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = parquet.read_table(path)
    column = pa.array(change(table[name].to_pylist()), type=table[name].type)
    parquet.write_table(table.set_column(table.schema.get_field_index(name), name, column), path)
