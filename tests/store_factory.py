"""Small stores of made-up clips, for every test that reads one."""

from collections.abc import Sequence
from pathlib import Path

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from data_specs.shards import DatasetRecord, Format, Manifest, ModelRecord, Sidecar
from pipeline.store.layout import Mode, StoreLayout
from pipeline.store.sums import write_sums
from pipeline.store.writer import ShardWriter

POINTS, CHANNELS, SIZE = 96, 16, 28
FORMATS: tuple[Format, ...] = ("zarr", "webdataset")


def small_record(key: str, frames: int = 3, kept: int | None = 60, seed: int = 0, **more: object) -> ClipRecord:
    """A clip of `frames` frames of 28x28 pixels with 96 points and 16 channels; every other frame is padded."""
    sizes = {"points": POINTS, "channels": CHANNELS, "size": SIZE}
    return example_record(key, frames=frames, kept=kept, seed=seed, **{**sizes, **more})  # type: ignore[arg-type]


def small_records(count: int = 5, **more: object) -> list[ClipRecord]:
    """Clips `clips/00`, `clips/01`, … of 1, 2, 3, 4, 1, … frames."""
    return [small_record(f"clips/{i:02d}", frames=1 + i % 4, text=f"Moving {i} ✓", **more) for i in range(count)]


def small_manifest(store_format: Format = "zarr", **sizes: int) -> Manifest:
    """A manifest that fits the small clips."""
    return Manifest(
        format=store_format,
        dataset=DatasetRecord(name="ssv2", root="/data/ssv2", split="train", options={"limit": 5}),
        models=(ModelRecord(role="vggt", name="random:0", revision="", sha256="00", random=True),),
        recipe={"name": "tiny", "frames": {"fps": 4.0, "max": 8}, "points": {"count": POINTS}},
        sizes={"P": POINTS, "C": CHANNELS, "W": SIZE, **sizes},
    )


def write_shards(
    layout: StoreLayout, records: Sequence[ClipRecord], per_shard: int, bad: Sequence[tuple[str, str]] = ()
) -> list[Sidecar]:
    """Write the clips `per_shard` a shard, the rejections with the first."""
    sidecars = []
    for number, start in enumerate(range(0, len(records), per_shard)):
        writer = ShardWriter(layout, f"{number:06d}")
        for record in records[start : start + per_shard]:
            writer.add(record)
        for key, reason in bad if number == 0 else ():
            writer.reject(key, reason)
        sidecars.append(writer.commit())
    return sidecars


def small_store(
    path: Path | str,
    store_format: Format = "zarr",
    records: Sequence[ClipRecord] | None = None,
    per_shard: int = 2,
    bad: Sequence[tuple[str, str]] = (),
    mode: Mode = "new",
    **sizes: int,
) -> StoreLayout:
    """A finished store of a few clips."""
    layout = StoreLayout.create(str(path), small_manifest(store_format, **sizes), mode)
    write_shards(layout, small_records() if records is None else records, per_shard, bad)
    layout.write_index()
    layout.write_rejected()
    write_sums(layout)
    return layout


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
