"""How small a store is, array by array, and how fast it is written and read, beside a plain copy of the bytes."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.records import ClipRecord
from data_specs.shards import Format, Manifest
from pipeline.bench.table import Table, interleaved
from pipeline.config import override
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.runner import ExtractRequest, manifest_of
from pipeline.recipes import extract_recipe
from pipeline.sources import open_source
from pipeline.store import open_store
from pipeline.store.columns import record_arrays
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter

DISTINCT_CLIPS = 4
CLIPS_A_SHARD = 16
PAIRS = 64


def bench_store(*, clips: int, rounds: int) -> Table:
    """Sizes and speeds of both formats, on clips of the tabletop world with sensor depth (repeated under new keys)."""
    records, manifest = _records(clips)
    with tempfile.TemporaryDirectory(prefix="cla-bench-") as folder:
        return _measure(Path(folder), records, manifest, rounds)


def _measure(folder: Path, records: list[ClipRecord], manifest: Manifest, rounds: int) -> Table:
    frames = sum(len(record) for record in records)
    rows: list[tuple[Any, ...]] = []
    sizes: dict[str, dict[str, float]] = {}
    reads: dict[str, Callable[[], Any]] = {}
    raw = sum(array.nbytes for record in records for array in record_arrays(record).values())
    formats: tuple[Format, ...] = ("zarr", "webdataset")
    for store_format in formats:
        url = str(folder / store_format)
        start = time.perf_counter()
        layout = write_store(url, records, manifest.model_copy(update={"format": store_format}))
        seconds = time.perf_counter() - start
        rows.append((f"write {store_format}, fsync included", raw / seconds / 1e6, ""))
        sizes[store_format] = _bytes_a_frame(layout, frames)
        reads[store_format] = _reader(url)
    pairs_mb, copy = _copy(str(folder / "zarr"))
    reads["memcpy"] = copy
    medians = interleaved(reads, rounds)
    for name in reads:
        label = (
            "copy of the same bytes (np.copyto)" if name == "memcpy" else f"read {name}, random pairs, tokens and cells"
        )
        rows.append((label, pairs_mb / medians[name], round(medians["memcpy"] / medians[name], 2)))
    dense = manifest.sizes["P"] * manifest.sizes["C"] * 2
    notes = [
        f"{frames} frames in {len(records)} clips; dense layout [{manifest.sizes['P']},{manifest.sizes['C']}] float16"
    ]
    for name, by_array in sizes.items():
        total = sum(by_array.values())
        notes.append(f"{name}: {total:,.0f} bytes a frame, {dense / total:.1f} times under dense features alone")
        notes += [f"    {array:22} {size:10,.0f}" for array, size in sorted(by_array.items(), key=lambda kv: -kv[1])]
    return Table(
        title="cla bench store",
        columns=("what", "MB/s", "share of memcpy"),
        rows=tuple(rows),
        notes=tuple(notes),
        figures={"bytes_per_frame": sizes, "dense_bytes_per_frame": dense, "frames": frames},
    )


def _records(clips: int) -> tuple[list[ClipRecord], Manifest]:
    """A few distinct clips through the tiny recipe, repeated under new keys; base would take minutes on a CPU."""
    recipe = override(extract_recipe("tiny"), ["geometry.source=sensor"])
    models = load_models(recipe, choose_device("cpu"))
    source = open_source("tabletop", None, None, {"clips": str(DISTINCT_CLIPS), "seed": "0"})
    mapper = Mapper(recipe, models)
    distinct = [mapper(source.read(ref, recipe.frames)) for ref in source.clips()]
    records = [replace(distinct[i % len(distinct)], key=f"clip-{i:05d}") for i in range(clips)]
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, options={}, limit=None, out="", format="zarr", recipe=recipe
    )
    return records, manifest_of(request, source, source.clips(), models)


def write_store(url: str, records: Sequence[ClipRecord], manifest: Manifest) -> StoreLayout:
    """A store of these clips at `url`."""
    layout = StoreLayout.create(url, manifest)
    for number, start in enumerate(range(0, len(records), CLIPS_A_SHARD)):
        writer = ShardWriter(layout, f"{number:06d}")
        for record in records[start : start + CLIPS_A_SHARD]:
            writer.add(record)
        writer.commit()
    layout.write_index()
    return layout


def _bytes_a_frame(layout: StoreLayout, frames: int) -> dict[str, float]:
    total: dict[str, float] = {}
    for sidecar in layout.sidecars():
        for name, entry in sidecar.arrays.items():
            total[name] = total.get(name, 0) + entry.bytes / frames
    return total


def _random_pairs(frames: int) -> Iterator[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(0, frames, 2 * PAIRS)


def _reader(url: str) -> Callable[[], Any]:
    store = open_store(url)
    pairs = _random_pairs(store.num_frames)
    return lambda: store.batch(next(pairs), columns=("tokens", "cells"))


def _copy(url: str) -> tuple[float, Callable[[], Any]]:
    """Megabytes of a batch of pairs, and one copy of as many from one buffer into another."""
    store = open_store(url)
    batch = store.batch(next(_random_pairs(store.num_frames)), columns=("tokens", "cells"))
    sizes: list[int] = []
    batch.map(lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    source = np.ones(sum(sizes), np.uint8)
    target = np.empty_like(source)
    return sum(sizes) / 1e6, lambda: np.copyto(target, source)
