"""The store's schema, version 1: the arrays of a shard, and what its manifest and sidecars say.

A store is a folder (or any fsspec URL) that holds `manifest.json`, `index.parquet`, `rejected.jsonl` and `shards/`:
one data file a shard (`000012.zarr.zip` or `000012.tar`) and its sidecar `000012.json`, which is the commit. Nothing
in these files depends on when, where or how fast they were written: two runs give identical bytes.
"""

import re
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_specs.arrays import ArraySpec

SCHEMA_VERSION = 1
GRID = 14
"""Cells along a side of a frame; `cells/cell` is row * GRID + column."""

Format = Literal["zarr", "webdataset"]

SUFFIX: dict[Format, str] = {"zarr": ".zarr.zip", "webdataset": ".tar"}
"""What the data file of a shard ends with."""


def _array(
    name: str,
    dtype: str,
    dims: tuple[str | int, ...],
    units: str,
    doc: str,
    optional: bool = False,
    also: tuple[str, ...] = (),
) -> ArraySpec:
    return ArraySpec(name=name, dtype=dtype, dims=dims, units=units, doc=doc, optional=optional, also=also)


_SPECS = (
    _array("time", "<f8", ("F",), "s", "time of the frame from the start of its video, increasing within a clip"),
    _array(
        "tokens/feat", "<f2", ("T", "C"), "1", "distinct coarse features of a frame; int8 with scales", also=("|i1",)
    ),
    _array("tokens/coord", "<f2", ("T", 3), "1", "mean coordinate of the token's cell, in the normalised space"),
    _array("tokens/count", "<u2", ("T",), "points", "how many points of the frame share the token"),
    _array("tokens/offset", "<i8", ("F+1",), "rows", "tokens of frame i are rows offset[i]:offset[i+1]"),
    _array("tokens/scale", "<f2", ("F", "C"), "1", "of int8 features: value = feat * scale", optional=True),
    _array("cells/cell", "|u1", ("M",), "1", "14x14 cell of the image: row * 14 + column"),
    _array("cells/token", "<u2", ("M",), "1", "token of the same frame, counted from the frame's first"),
    _array("cells/count", "<u2", ("M",), "points", "how many points of the cell share the token"),
    _array("cells/offset", "<i8", ("F+1",), "rows", "triplets of frame i, sorted by (cell, token)"),
    _array("points/pixel", "<u2", ("F", "P"), "pixels", "row * W + column; sorted by (token, pixel), then 0 padding"),
    _array("points/rgb", "|u1", ("F", "P", 3), "1", "colour of the point"),
    _array("points/depth", "<u2", ("F", "P"), "1/65535", "depth along the optical axis on the frame's [near, far]"),
    _array("points/conf", "|u1", ("F", "P"), "1/255", "confidence on the frame's own scale (camera/conf_range)"),
    _array("camera/intrinsic", "<f4", ("F", 3, 3), "pixels", "pinhole camera; pixel centres at integer coordinates"),
    _array("camera/extrinsic", "<f4", ("F", 3, 4), "depth units", "OpenCV camera-from-world"),
    _array("camera/range", "<f4", ("F", 2), "depth units", "near and far of points/depth"),
    _array("camera/conf_range", "<f4", ("F", 2), "1", "least and greatest confidence of points/conf"),
    _array(
        "camera/normalisation", "<f4", ("F", 4), "depth units", "centre, scale: normalised = (xyz - centre) * scale"
    ),
    _array("rgb/data", "|u1", ("B",), "bytes", "the frames as JPEG or PNG, one after the other"),
    _array("rgb/offset", "<i8", ("F+1",), "bytes", "image of frame i is bytes offset[i]:offset[i+1]"),
    _array("state", "<f4", ("F", "S"), "the dataset's", "proprioception", optional=True),
    _array("action", "<f4", ("F", "A"), "the dataset's", "action[i] leads from frame i on", optional=True),
    _array("is_pad", "|b1", ("F",), "1", "true where action[i] is padding", optional=True),
)

ARRAYS: dict[str, ArraySpec] = {spec.name: spec for spec in _SPECS}
"""Every array of a shard by name, in the order in which the content digest takes them.

`tokens/scale` is there where `tokens/feat` is int8. P is 0 in a store that keeps no points.

Sizes: C and P (and S, A) from the manifest; F, T, M, B are sums over the clips of the shard. A zarr shard also holds
`clips/offset` (below); a tar shard holds a sample a clip. Offsets start at 0 for each shard (zarr) or clip (tar).
"""

CLIP_OFFSET = _array("clips/offset", "<i8", ("N+1",), "frames", "frames of clip i of a zarr shard")

OFFSETS: dict[str | int, str] = {"T": "tokens/offset", "M": "cells/offset", "B": "rgb/offset"}
"""The offset array of each ragged dimension."""

EXTRA = "extra/"
"""Prefix of arrays that a recipe adds (`ClipRecord.extra`): [n, ...] a clip, one dtype and trailing shape a store."""

VISION, VIEWS = "vision/", "views/"
"""Prefixes of what has a name of its own: outputs of frozen image encoders, and pictures of further cameras."""

PART_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What an encoder or a camera may be called."""

LANGUAGE = "language.safetensors"
"""File of a store whose recipe has a text encoder: its outputs, one copy for each distinct instruction."""


@cache
def array_spec(name: str) -> ArraySpec | None:
    """What array `name` of a shard must be; None for one that the schema does not know, or an extra one.

    The sizes N and D of `vision/NAME`, and B of `views/NAME`, are each array's own.
    """
    if name in ARRAYS:
        return ARRAYS[name]
    if name.startswith(VISION) and PART_NAME.fullmatch(name.removeprefix(VISION)):
        return _array(name, "<f2", ("F", "N", "D"), "1", "frozen image encoder's tokens of the frame, row after row")
    view, _, part = name.removeprefix(VIEWS).rpartition("/")
    if name.startswith(VIEWS) and PART_NAME.fullmatch(view):
        if part == "data":
            return _array(name, "|u1", ("B",), "bytes", "pictures of the camera as JPEG or PNG, one after the other")
        if part == "offset":
            return _array(name, "<i8", ("F+1",), "bytes", "picture of frame i is bytes offset[i]:offset[i+1]")
    return None


@cache
def offset_name(name: str) -> str | None:
    """The offset array that cuts `name` into frames, or None where row i is frame i, or rows are free."""
    if name.startswith(VIEWS):
        return f"{name.removesuffix('data')}offset" if name.endswith("/data") else None
    spec = array_spec(name)
    return None if spec is None else OFFSETS.get(spec.dims[0])


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Spec):
    """A frozen model the store was made with. `sha256` is of the weights; `random` says that they are not trained."""

    role: str
    name: str
    revision: str
    sha256: str
    random: bool
    licence: str = ""


class DatasetRecord(_Spec):
    """Where the clips came from: the facts of the dataset, the folder as given, the split, and what was asked for."""

    name: str
    spec: dict[str, Any] = Field(default_factory=dict)
    root: str | None = None
    split: str = ""
    options: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Spec):
    """What a whole store is made from (`manifest.json`).

    `sizes` binds C (channels of a token), P (points kept a frame) and W (side of the square frames, pixels), and S and
    A where there is robot data. `geometry` says where depth and cameras came from and which axis is up. `statistics`
    of state and action are added when they are known.
    """

    schema_version: int = SCHEMA_VERSION
    format: Format
    dataset: DatasetRecord
    models: tuple[ModelRecord, ...] = ()
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    geometry: dict[str, Any] = Field(default_factory=dict)
    sizes: dict[str, int]
    statistics: dict[str, Any] | None = None


class FileEntry(_Spec):
    """A data file as it was committed."""

    name: str
    bytes: int
    sha256: str


class ArrayEntry(_Spec):
    """An array of a shard, over all its clips in order.

    `bytes` as stored, `crc32` of the values clip by clip, `nonfinite` how many of them are infinite or not a number.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    crc32: int
    nonfinite: int = 0


class ClipRow(_Spec):
    """A clip of a shard. `digest` is the SHA-256 of its content, the same in every format and shard size."""

    key: str
    split: str
    text: str
    frames: int
    time: tuple[float, ...]
    digest: str


class Rejected(_Spec):
    """A clip that is bad data, and the sentence that says why."""

    key: str
    reason: str


class Sidecar(_Spec):
    """The commit of a shard (`shards/000012.json`). `file` is None when every clip of the shard was rejected."""

    schema_version: int = SCHEMA_VERSION
    shard: str
    format: Format
    file: FileEntry | None
    rows: tuple[ClipRow, ...]
    arrays: dict[str, ArrayEntry]
    rejected: tuple[Rejected, ...] = ()


NOT_COMPARED = ("dataset.root", "statistics")
"""Manifest entries in which a resumed run may differ: data can move, statistics come last."""


def differing_keys(old: Manifest, new: Manifest) -> list[str]:
    """Dotted names of the manifest entries that differ, in order; empty when a run may go on with the store."""
    mine, theirs = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    missing = object()
    names = [*mine, *(name for name in theirs if name not in mine)]
    return [
        name
        for name in names
        if mine.get(name, missing) != theirs.get(name, missing)
        and not any(name == skip or name.startswith(f"{skip}.") for skip in NOT_COMPARED)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = {str(i): item for i, item in enumerate(value)}.items()
    else:
        return {name: value}
    prefix = f"{name}." if name else ""
    leaves = {leaf: item for key, part in items for leaf, item in _leaves(part, f"{prefix}{key}").items()}
    return leaves or {name: value}
