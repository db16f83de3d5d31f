"""How long a store of very many clips takes to open, and to merge: a synthetic index and sidecars, no data."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.shards import SCHEMA_VERSION, ClipRow, DatasetRecord, Manifest, Sidecar
from pipeline.bench.table import Table, columns_of
from pipeline.config import FailedError
from pipeline.recipes import extract_recipe
from pipeline.store.index import INDEX_SCHEMA, index_bytes
from pipeline.store.layout import INDEX, SHARDS, StoreLayout, sidecar_bytes

TEXTS = 10_000
LIMIT_S = 1800

_BEGIN = """
import json, re, sys, time
import torch
from pipeline.store import open_store
from pipeline.extract.merge import merge_stores
def peak():
    # not getrusage's: it begins with what the parent had
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
found = {"memory_before": peak()}
def step(name, action):
    begin = time.perf_counter()
    action()
    found[name] = {"seconds": time.perf_counter() - begin, "peak": peak()}
"""

_MERGE = """
step("merge", lambda: merge_stores([sys.argv[1]], None))
print(json.dumps(found))
"""

_OPEN = """
step("manifest", lambda: __import__("pipeline.store.layout", fromlist=["x"]).StoreLayout.open(sys.argv[1]))
def opened():
    global store
    store = open_store(sys.argv[1])
step("open", opened)
step("clip_of", lambda: store.clip_of([0, store.num_frames - 1]))
step("times of all frames", lambda: store.time)
found["clips"], found["frames"] = len(store), store.num_frames
print(json.dumps(found))
"""


def bench_index(*, clips: int, frames: int, clips_a_shard: int, merge: bool = False) -> Table:
    """Open a store whose index lists `clips` clips of `frames` frames, in a process of its own; with `merge`, after
    `cla merge` has made that index of sidecars, in another one.
    """
    with tempfile.TemporaryDirectory(prefix="cla-index-") as folder:
        _write(Path(folder), clips, frames, clips_a_shard, whole=merge)
        merged = _run(_MERGE, folder) if merge else {}
        found = {**merged, **_run(_OPEN, folder)}
        size = (Path(folder) / INDEX).stat().st_size
    steps = [name for name, value in found.items() if isinstance(value, dict)]
    rows: list[dict[str, Any]] = [
        {"step": name, "seconds": found[name]["seconds"], "peak GB": found[name]["peak"] / 1e9} for name in steps
    ]
    names, values = columns_of(rows)
    shards = -(-clips // clips_a_shard)
    return Table(
        title=f"A store of {clips:,} clips, {clips * frames:,} frames, {shards:,} shards",
        columns=names,
        rows=values,
        notes=(
            f"index.parquet has {size / 1e6:,.0f} MB; the process had {found['memory_before'] / 1e9:.2f} GB before",
            "local disk, files just written, page cache warm; opening lists the folder of shards and reads no sidecar",
            *(["merge: every sidecar read, index, rejected clips and checksums written"] if merge else []),
        ),
        figures={"clips": clips, "index_bytes": size, "writer_peak": resource.getrusage(0).ru_maxrss * 1024, **found},
    )


def _run(steps: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _BEGIN + steps, folder]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise FailedError(f"The store took more than {LIMIT_S} s.") from None
    if run.returncode:
        raise FailedError(f"The store cannot be measured: {run.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _write(folder: Path, clips: int, frames: int, clips_a_shard: int, *, whole: bool) -> None:
    """Manifest and index; of the sidecars, which list no data file, just the names unless they are to be `whole`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    recipe = extract_recipe("full").recorded()
    sizes = {"C": 512, "P": 8192, "W": 224}
    manifest = Manifest(format="zarr", dataset=DatasetRecord(name="synthetic"), recipe=recipe, sizes=sizes)
    layout = StoreLayout.create(str(folder), manifest)
    shards = [f"{i:06d}" for i in range(-(-clips // clips_a_shard))]
    (folder / SHARDS).mkdir()
    rng = np.random.default_rng(0)
    row = np.arange(clips)
    seconds = pa.array(np.tile(np.arange(frames) / 12, clips))
    offset = pa.py_buffer(np.arange(clips + 1, dtype=np.int32) * 64)
    digest = pa.StringArray.from_buffers(clips, offset, pa.py_buffer(rng.bytes(32 * clips).hex().encode()))
    texts = pa.array([f"Moving something number {i} across the table, then putting it back" for i in range(TEXTS)])
    table = pa.table(
        {
            "key": pc.utf8_lpad(pa.array(row).cast(pa.string()), width=10, padding="0"),
            "split": pa.array(["train"]).take(pa.array(np.zeros(clips, dtype=np.int8))),
            "text": texts.take(pa.array(rng.integers(0, TEXTS, clips))),
            "shard": pa.array(shards).take(pa.array(row // clips_a_shard)),
            "row": pa.array((row % clips_a_shard).astype(np.int32)),
            "frames": pa.array(np.full(clips, frames, dtype=np.int32)),
            "first_time": pa.array(np.zeros(clips)),
            "last_time": pa.array(np.full(clips, (frames - 1) / 12)),
            "time": pa.ListArray.from_arrays(
                pa.array(np.arange(clips + 1, dtype=np.int32) * frames), pa.array(seconds)
            ),
            "digest": digest,
        }
    ).cast(INDEX_SCHEMA)
    metadata = {"cla_schema_version": str(SCHEMA_VERSION), "cla_shards": json.dumps(shards)}
    layout.files.write_bytes(INDEX, index_bytes(table.replace_schema_metadata(metadata)))
    for i, shard in enumerate(shards):
        rows = table.slice(i * clips_a_shard, clips_a_shard).to_pylist() if whole else []
        sidecar = Sidecar(
            shard=shard,
            format="zarr",
            file=None,
            rows=tuple(ClipRow(**{name: row[name] for name in ClipRow.model_fields}) for row in rows),
            arrays={},
        )
        (folder / SHARDS / f"{shard}.json").write_bytes(sidecar_bytes(sidecar) if whole else b"")
