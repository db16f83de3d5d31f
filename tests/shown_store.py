"""A small store on disk for the tests of what is shown of stores."""

from collections.abc import Sequence
from pathlib import Path

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from data_specs.shards import DatasetRecord, Format, Manifest, ModelRecord
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums
from pipeline.store.writer import ShardWriter

POINTS, CHANNELS, SIZE = 2000, 16, 224
RANDOM = ModelRecord(role="vggt", name="random:0", revision="", sha256="", random=True, licence="none")
TRAINED = ModelRecord(
    role="concerto", name="Pointcept/Concerto", revision="main", sha256="ab" * 32, random=False, licence="CC-BY-NC-4.0"
)


def small_records(count: int = 3, texts: Sequence[str] = ("Moving something up",)) -> list[ClipRecord]:
    return [
        example_record(
            f"clip-{i}", frames=3, points=POINTS, channels=CHANNELS, size=SIZE, kept=1800, text=texts[i % len(texts)]
        )
        for i in range(count)
    ]


def write_store(
    path: Path,
    records: Sequence[ClipRecord],
    *,
    rejected: Sequence[tuple[str, str]] = (),
    models: Sequence[ModelRecord] = (RANDOM, TRAINED),
    store_format: Format = "zarr",
    title: str = "A small world",
) -> str:
    """A store of one shard a clip, and one for `rejected`."""
    manifest = Manifest(
        format=store_format,
        dataset=DatasetRecord(name="small", spec={"title": title, "licence": "Apache-2.0"}),
        models=tuple(models),
        recipe={"name": "test"},
        sizes={"C": CHANNELS, "P": POINTS, "W": SIZE},
    )
    layout = StoreLayout.create(str(path), manifest)
    for number, record in enumerate(records):
        writer = ShardWriter(layout, f"{number:06d}")
        writer.add(record)
        writer.commit()
    if rejected:
        writer = ShardWriter(layout, "000999")
        for key, reason in rejected:
            writer.reject(key, reason)
        writer.commit()
    layout.write_index()
    layout.write_rejected()
    write_sums(layout)
    return str(path)
