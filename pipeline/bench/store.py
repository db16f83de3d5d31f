"""How fast a store is read, beside a plain copy of the bytes and other readers; how small it is, array by array."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from data_specs.shards import DatasetRecord, Format, Manifest
from pipeline.bench.copies import copies
from pipeline.bench.readers import (
    COLLATE,
    PAIRS,
    Frames,
    Reader,
    collating,
    flat_files,
    loaders,
    other_readers,
    our_readers,
)
from pipeline.bench.table import Table, interleaved_rounds
from pipeline.config import override
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.runner import ExtractRequest, manifest_of
from pipeline.recipes import extract_recipe
from pipeline.sources import open_source
from pipeline.store.columns import record_arrays
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter

DISTINCT_CLIPS = 4
CLIPS_A_SHARD = 16
FRAMES_A_CLIP = 8
CELL = 0.195
"""Side of a token's cell that leaves some 160 tokens a frame."""

FORMATS: tuple[Format, ...] = ("zarr", "webdataset")


def bench_store(*, clips: int, rounds: int) -> Table:
    """How fast random pairs of frames are read, by us and by others, and what a store takes on the disk.

    Pairs are read from made-up clips of full size (512 channels, some 160 tokens a frame, 334 KB a pair); sizes are
    those of clips of the tabletop world by recipe tiny, with sensor depth. Both are repeated under new keys.
    """
    with tempfile.TemporaryDirectory(prefix="cla-bench-") as folder:
        return _measure(Path(folder), clips, rounds)


def _measure(folder: Path, clips: int, rounds: int) -> Table:
    read, frames = _reading(folder / "pairs", clips, rounds)
    written, sizes, dense = _sizes(folder / "sizes", clips)
    notes = [
        f"{frames.count} frames of {frames.mean:,.0f} bytes; {PAIRS} random pairs a batch unless a row says otherwise; "
        f"medians of {rounds} interleaved rounds, page cache warm; shares are medians of each round's",
        "memcpy: one copy of as many bytes as a batch has, out of 256 MB in turn, into an array that is used again, as "
        "a batch of ours takes the memory of one that nothing refers to; into fresh memory: into pages that the kernel "
        "makes anew each time",
        *(
            f"{label}: {1 / share:.2f} times the memcpy of their bytes"
            for label, _, _, share, *_ in read
            if label.startswith(COLLATE)
        ),
        *written,
        *sizes.pop("notes"),
    ]
    return Table(
        title="cla bench store",
        columns=("what", "MB/s", "pairs/s", "share of memcpy", "of memcpy into fresh memory", "by CPU time"),
        rows=tuple(read),
        notes=tuple(notes),
        figures={"bytes_per_frame": sizes, "dense_bytes_per_frame": dense, "frames": frames.count},
    )


def _reading(folder: Path, clips: int, rounds: int) -> tuple[list[tuple[Any, ...]], Frames]:
    records, manifest = _full_size(clips)
    urls: dict[str, str] = {}
    for store_format in FORMATS:
        urls[store_format] = str(folder / store_format)
        write_store(urls[store_format], records, manifest.model_copy(update={"format": store_format}))
    frames = Frames(records)
    threads = torch.get_num_threads()
    try:
        readers = [
            *copies(frames, flat_files(folder, frames)["tokens/feat"]),
            *our_readers(urls, frames),
            *collating(frames),
            *loaders(urls, frames),
            *other_readers(folder, urls, frames),
        ]
        by_wall, by_cpu = _rates({reader.label: reader for reader in readers}, rounds)
    finally:
        torch.set_num_threads(threads)
    rows: list[tuple[Any, ...]] = []
    for reader in readers:
        label = reader.label
        rate = statistics.median(by_wall[label])
        pairs = "" if ":" in label else round(rate / (2 * frames.mean))
        shares = [_share(by_wall, label, of) for of in ("memcpy", "memcpy into fresh memory")]
        rows.append((label, rate / 1e6, pairs, *shares, _share(by_cpu, label, "memcpy") if reader.alone else ""))
    return sorted(rows, key=lambda row: -row[1]), frames


def _share(rates: dict[str, list[float]], label: str, of: str) -> float:
    """The median over rounds: what slows the machine down for a while slows both."""
    return round(statistics.median(mine / other for mine, other in zip(rates[label], rates[of], strict=True)), 3)


def _rates(readers: dict[str, Reader], rounds: int) -> list[dict[str, list[float]]]:
    """Bytes a second, and bytes a second of work, of every round."""

    def several(read: Callable[[], Any], calls: int) -> None:
        for _ in range(calls):
            read()

    def prepare(label: str) -> None:
        torch.set_num_threads(readers[label].threads)
        several(readers[label].read, readers[label].calls // 3)

    actions = {label: partial(several, reader.read, reader.calls) for label, reader in readers.items()}
    clocks = (time.perf_counter, time.process_time)
    times = interleaved_rounds(actions, rounds, clocks, before=prepare)
    return [
        {label: [readers[label].bytes * readers[label].calls / s for s in seconds] for label, seconds in by.items()}
        for by in times
    ]


def _sizes(folder: Path, clips: int) -> tuple[list[str], dict[str, Any], int]:
    records, manifest = _records(clips)
    frames = sum(len(record) for record in records)
    raw = sum(array.nbytes for record in records for array in record_arrays(record).values())
    dense = manifest.sizes["P"] * manifest.sizes["C"] * 2
    written, sizes = [], dict[str, Any](notes=[])
    for store_format in FORMATS:
        start = time.perf_counter()
        layout = write_store(str(folder / store_format), records, manifest.model_copy(update={"format": store_format}))
        seconds = time.perf_counter() - start
        written.append(f"write {store_format}, fsync included: {raw / seconds / 1e6:.1f} MB/s of raw arrays")
        by_array = sizes[store_format] = _bytes_a_frame(layout, frames)
        total = sum(by_array.values())
        sizes["notes"].append(
            f"{store_format}: {total:,.0f} bytes a frame of the tabletop world, {dense / total:.1f} times under dense "
            f"[{manifest.sizes['P']},{manifest.sizes['C']}] float16 features alone"
        )
        sizes["notes"] += [
            f"    {array:22} {size:10,.0f}" for array, size in sorted(by_array.items(), key=lambda kv: -kv[1])
        ]
    return written, sizes, dense


def _full_size(clips: int) -> tuple[list[ClipRecord], Manifest]:
    distinct = [example_record(f"{i}", frames=FRAMES_A_CLIP, cell=CELL) for i in range(DISTINCT_CLIPS)]
    records = [replace(distinct[i % len(distinct)], key=f"clip-{i:05d}") for i in range(clips)]
    sizes = {"P": distinct[0].points.pixel.shape[1], "C": distinct[0].tokens.feat.shape[1], "W": 224}
    return records, Manifest(format="zarr", dataset=DatasetRecord(name="made-up"), sizes=sizes)


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
