"""How small a store is, array by array, beside a dense layout; what options that lose something cost."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import Zstd  # type: ignore[import-untyped]

from data_specs.records import Clip, ClipRecord
from data_specs.shards import Manifest
from pipeline.bench.losses import Loss, losses
from pipeline.bench.table import Table
from pipeline.config import RequestError, override
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.runner import ExtractRequest, manifest_of
from pipeline.recipes import extract_recipe
from pipeline.sources import open_source
from pipeline.store import StoreRequestError, open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store
from pipeline.store.writer import ShardWriter

CAMERA_NOISE = 2.0
"""Standard deviation, in steps of 255, of what is added to rendered pictures, which flatter every codec without it."""

_BASE = ("concerto.model=base", "concerto.weights=random:0")
CASES = {
    "sensor depth, 128 channels": ("geometry.source=sensor",),
    "512 channels, N' near 70": (*_BASE, "concerto.grid=0.0195"),
    "512 channels, N' near 160": (*_BASE, "concerto.grid=0.0116"),
}
"""Recipe tiny with these changes; Concerto base is random, depth is of the package's VGGT or of sensors."""

PARTS = {
    "features": ("tokens/feat", "tokens/scale"),
    "coordinates and counts of tokens": ("tokens/coord", "tokens/count", "tokens/offset"),
    "cells": ("cells/",),
    "cloud": ("points/pixel", "points/depth"),
    "colours": ("points/rgb",),
    "confidence": ("points/conf",),
    "camera": ("camera/",),
}
"""What a dense layout of features and points would have to hold, and what stands for it here."""

DENSE_FRAMES = 8
"""Frames that are laid out densely, compressed and decompressed."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a store: bytes a frame by array, `parts` of `PARTS`, the whole files; of the dense layout raw and by zstd.

    `decode_ms` are of a frame: our points, and the dense layout.
    """

    label: str
    frames: int
    tokens: float
    arrays: dict[str, float]
    parts: dict[str, float]
    file: float
    dense_features: float
    dense: float
    zstd_features: float
    zstd: float
    points_ms: float
    zstd_ms: float
    losses: tuple[Loss, ...]

    @property
    def everything(self) -> float:
        """Bytes a frame of all parts."""
        return sum(self.parts.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{name: value for name, value in vars(self).items() if name != "losses"},
            "everything": self.everything,
            "losses": [vars(loss) for loss in self.losses],
        }

    def notes(self) -> Iterator[str]:
        """What the table has no room for."""
        yield f"{self.label}: {self.frames} frames, {self.file:,.0f} bytes a frame with pictures and all else"
        yield f"    dense by zstd: features {self.zstd_features:,.0f}, with the cloud {self.zstd:,.0f}"
        yield f"    decoding a frame: our points {self.points_ms:.2f} ms, the dense layout {self.zstd_ms:.2f} ms"
        for name, size in sorted(self.arrays.items(), key=lambda item: -item[1]):
            yield f"    {name:25} {size:10,.0f}"
        for loss in self.losses:
            yield f"    {loss}"


def bench_size(*, store: str | None, run: Path | None, clips: int, frames: int, cases: Sequence[str] = ()) -> Table:
    """Sizes of a store, or of `clips` generated films of `frames` frames by the recipes of `CASES`.

    With `run`, a trained latent action model, also what share of its codes an option changes.
    """
    if store is not None:
        try:
            sizes = [measure(store, open_store(store), run)]
        except StoreRequestError as error:
            raise RequestError(str(error)) from None
    else:
        if run is not None:
            raise RequestError("--run judges codes on the store that it is for: give --store with it.")
        sizes = []
        for label in cases or CASES:
            with tempfile.TemporaryDirectory(prefix="cla-bench-") as folder:
                sizes.append(measure(label, _extracted(Path(folder), label, clips, frames), None))
    columns = (
        "store",
        "N'",
        "features",
        "everything",
        "features: raw /",
        "zstd /",
        "everything: raw /",
        "zstd / ",
    )
    rows = [
        (
            size.label,
            size.tokens,
            round(size.parts["features"]),
            round(size.everything),
            size.dense_features / size.parts["features"],
            size.zstd_features / size.parts["features"],
            size.dense / size.everything,
            size.zstd / size.everything,
        )
        for size in sizes
    ]
    head = (
        "bytes a frame; everything: features, cloud, colours, confidence, camera; raw and zstd: [P,C] float16 "
        "features, for everything with [P,3] float32 coordinates, over what is stored"
    )
    return Table(
        title="cla bench size",
        columns=columns,
        rows=tuple(rows),
        notes=(head, *(note for size in sizes for note in size.notes())),
        figures={"sizes": [size.as_json() for size in sizes]},
    )


def measure(label: str, store: Store, run: Path | None) -> Size:
    """What the sidecars say of a store, and its dense layout made of some of its frames."""
    frames, sizes = store.num_frames, store.manifest.sizes
    arrays: dict[str, float] = {}
    file = tokens = 0.0
    for sidecar in store.layout.sidecars():
        file += 0 if sidecar.file is None else sidecar.file.bytes
        tokens += sidecar.arrays["tokens/count"].shape[0] if sidecar.arrays else 0
        for name, entry in sidecar.arrays.items():
            arrays[name] = arrays.get(name, 0.0) + entry.bytes / frames
    points = sizes["P"] or int(store.manifest.recipe.get("points", {}).get("count", 0))
    dense = _dense(store, points)
    return Size(
        label=label,
        frames=frames,
        tokens=tokens / frames,
        arrays=arrays,
        parts={
            part: sum(size for name, size in arrays.items() if name.startswith(names)) for part, names in PARTS.items()
        },
        file=file / frames,
        dense_features=2.0 * points * sizes["C"],
        dense=points * (2.0 * sizes["C"] + 12),
        points_ms=_points_ms(store),
        losses=losses(store, run),
        **dense,
    )


def _dense(store: Store, points: int) -> dict[str, float]:
    """Bytes a frame of the dense layout by zstd, and milliseconds to decode it. Padding rows are zeros."""
    codec = Zstd(level=3)
    chosen = np.unique(np.linspace(0, store.num_frames - 1, DENSE_FRAMES).round().astype(int))
    features = cloud = seconds = 0.0
    for frame in chosen.tolist():
        tokens = store.batch([frame], ("tokens",)).need_tokens()
        feat = np.zeros((points, tokens.feat.shape[1]), np.float16)
        rows = np.repeat(tokens.feat.numpy(), tokens.count.numpy().astype(int), axis=0)
        feat[: len(rows)] = rows
        xyz = store.xyz([frame])[0].numpy() if store.manifest.sizes["P"] else np.zeros((points, 3), np.float32)
        packed, packed_xyz = codec.encode(feat), codec.encode(np.ascontiguousarray(xyz))
        features, cloud = features + len(packed), cloud + len(packed_xyz)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            codec.decode(packed, out=feat)
            codec.decode(packed_xyz)
            times.append(time.perf_counter() - start)
        seconds += min(times)
    count = len(chosen)
    return {
        "zstd_features": features / count,
        "zstd": (features + cloud) / count,
        "zstd_ms": seconds / count * 1e3,
    }


def _points_ms(store: Store) -> float:
    """Milliseconds a frame of points takes in a batch of them, the best of three; 0 where none are kept."""
    if not store.manifest.sizes["P"]:
        return 0.0
    chosen = range(min(16, store.num_frames))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        store.batch(chosen, ("points",))
        times.append(time.perf_counter() - start)
    return min(times) / len(chosen) * 1e3


def _extracted(folder: Path, label: str, clips: int, frames: int) -> Store:
    """A store of generated films with the noise of a camera, by recipe tiny with the case's changes."""
    recipe = override(extract_recipe("tiny"), [*CASES[label], f"frames.max={frames}"])
    models = load_models(recipe, choose_device("cpu"))
    source = open_source("tabletop", None, None, {"clips": str(clips), "seed": "0"})
    mapper = Mapper(recipe, models)
    records = [mapper(with_noise(source.read(ref, recipe.frames), index)) for index, ref in enumerate(source.clips())]
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, options={}, limit=None, out="", format="zarr", recipe=recipe
    )
    return write(str(folder / "store"), records, manifest_of(request, source, source.clips(), models))


def with_noise(clip: Clip, seed: int) -> Clip:
    """The clip as a camera with noise would have seen it."""
    noise = np.random.default_rng(seed).normal(scale=CAMERA_NOISE, size=clip.rgb.shape)
    return replace(clip, rgb=np.rint(clip.rgb + noise).clip(0, 255).astype(np.uint8))


def write(url: str, records: Sequence[ClipRecord], manifest: Manifest) -> Store:
    """A store of these clips in one shard."""
    layout = StoreLayout.create(url, manifest)
    writer = ShardWriter(layout, "000000")
    for record in records:
        writer.add(record)
    writer.commit()
    layout.write_index()
    return open_store(url)
