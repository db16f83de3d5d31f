"""Stores on S3: written, verified and read through errors, slow answers and cut connections; never mixed by two."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from s3_server import Faults, s3_bucket
from store_factory import small_record, small_store

from data_specs.shards import FileEntry
from pipeline.store import ShardError, StoreError, open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.shard_cache import ShardCache
from pipeline.store.sums import write_sums
from pipeline.store.verify import verify
from pipeline.store.writer import ShardWriter


@pytest.fixture
def bucket(server: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Faults]]:
    url, faults = server
    with s3_bucket(url, faults, monkeypatch) as name:
        yield f"{name}/store", faults


@pytest.mark.parametrize(
    "fault", [{}, {"errors": 2}, {"cuts": 1}, {"lost_answers": 1}, {"slow_s": 0.3}], ids=lambda f: next(iter(f), "none")
)
def test_a_store_is_written_verified_and_read_whatever_the_line_does(
    bucket: tuple[str, Faults], tmp_path: object, fault: dict[str, float]
) -> None:
    url, faults = bucket
    faults.match = "shards" if fault else ""
    for name, value in fault.items():
        setattr(faults, name, value)
    layout = small_store(url)
    if fault:
        assert faults.done
    assert verify(layout) == []
    here = open_store(small_store(f"{tmp_path}/s").url)
    there = open_store(url)
    assert there.digest == here.digest
    frames = np.arange(there.num_frames)[::-1].copy()
    assert there.batch(frames).tokens.feat.equal(here.batch(frames).tokens.feat)
    names = layout.files.names("shards")
    assert not [name for name in names if ".tmp-" in name]


def _write(layout: StoreLayout, seed: int) -> None:
    writer = ShardWriter(layout, "000009")
    writer.add(small_record("late", seed=seed))
    writer.commit()


def test_two_who_write_one_shard_never_mix_it(bucket: tuple[str, Faults]) -> None:
    layout = small_store(bucket[0])
    _write(layout, 1)
    _write(layout, 1)  # the same bytes: nothing is wrong
    with pytest.raises(StoreError, match=r"Somebody else writes shard 000009"):
        _write(layout, 2)
    layout.write_index()
    layout.write_rejected()
    write_sums(layout)
    assert verify(layout) == []


def test_one_of_two_starts_a_store_and_the_other_compares(bucket: tuple[str, Faults]) -> None:
    manifest = small_store(bucket[0]).manifest
    url = bucket[0] + "2"
    first = StoreLayout.create(url, manifest, "join")
    assert StoreLayout.create(url, manifest, "join") == first
    with pytest.raises(StoreError, match="seed"):
        StoreLayout.create(url, manifest.model_copy(update={"seed": 12345}), "join")
    with pytest.raises(FileExistsError):
        first.files.write_bytes("manifest.json", b"{}", new=True)


def test_a_server_that_is_gone_or_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: tuple[str, Faults]
) -> None:
    """Whatever its client's library raises."""
    layout = small_store(bucket[0])
    shard = layout.committed()[0]
    source, cache = layout.source(shard), ShardCache(tmp_path, 1 << 30)

    class RefusedError(Exception):
        """Of no kind that we know."""

    def refuse(*_: object, **__: object) -> None:
        raise RefusedError("connection refused\nby peer")

    fs = fsspec.filesystem("s3")
    for name in ("cat_file", "cat", "get_file", "put_file", "info", "ls"):
        monkeypatch.setattr(fs, name, refuse)
    url = bucket[0]
    sentence = r"Could not read .*: connection refused\. See whether the server"
    for read in (
        lambda: StoreLayout.open(url),
        lambda: source.read(0, source.size),
        lambda: layout.source(shard),
        lambda: layout.committed(),
        lambda: layout.files.read_many(["shards/000000.json"]),
    ):
        with pytest.raises(StoreError, match=sentence):
            read()
    with pytest.raises(StoreError, match=r"Could not write .*/x: connection refused"):
        layout.files.write_bytes("x", b"")
    with pytest.raises(StoreError, match="Could not read"):
        cache.open(layout, shard)
    monkeypatch.setattr(ShardCache, "_entry", lambda self, layout, shard: entry)
    entry = FileEntry(name="x", bytes=5, sha256="0" * 64)
    with pytest.raises(ShardError, match=r"does not arrive \(Could not read .*connection refused.*3 times"):
        cache.open(layout, shard)
    assert not list(tmp_path.glob("*.part"))
