"""`cla bench store`: what its readers read, and what it says of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from store_factory import FORMATS, small_manifest, small_records

from pipeline.bench import readers
from pipeline.bench import store as bench
from pipeline.bench.copies import copies
from pipeline.bench.readers import ARRAYS, Frames
from pipeline.store import open_store


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_full_size", lambda clips: (small_records(clips), small_manifest()))
    monkeypatch.setattr(bench, "_records", lambda clips: (small_records(clips), small_manifest()))
    monkeypatch.setattr(readers, "PAIRS", 4)
    monkeypatch.setattr(readers, "LOADED", 4)
    monkeypatch.setattr(readers, "WORKERS_BY", "fork")  # to spawn four takes twenty seconds


@pytest.mark.usefixtures("small")
def test_every_reader_has_a_row_and_shares_of_a_copy(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    table = bench._measure(tmp_path, clips=6, rounds=2)
    assert torch.get_num_threads() == threads
    rows = {row["what"]: row for row in json.loads(json.dumps(table.as_json()))["rows"]}
    expected = ["memcpy", "memcpy into fresh memory", "memcpy from a mapped file"]
    expected += ["flat arrays, mapped", "a .npy file a frame", "h5py, contiguous"]
    expected += ["plain zarr, a chunk a frame", "plain zarr, our shard", "WebDataset in sequence, 1 pair a clip"]
    expected += ["zarr store, 1 thread", "webdataset store, 1 thread"]
    expected += ["collate frames that are in memory, 1 thread", "zarr store, 1 thread, the batch before still held"]
    expected += [f"DataLoader over {name}, {workers} workers" for name in FORMATS for workers in (0, 2)]
    assert set(expected) <= set(rows)
    assert rows["memcpy"]["share of memcpy"] == rows["memcpy"]["by CPU time"] == 1
    assert rows["memcpy into fresh memory"]["of memcpy into fresh memory"] == 1
    assert any("1 thread:" in note and "times the memcpy of their bytes" in note for note in table.notes)
    assert all(row["MB/s"] > 0 for row in rows.values())
    assert set(table.figures["bytes_per_frame"]) == set(FORMATS)
    assert any("tokens/feat" in note for note in table.notes)


@pytest.mark.usefixtures("small")
def test_all_read_the_same_frames(tmp_path: Path) -> None:
    records = small_records(6)
    frames = Frames(records)
    urls = {}
    for store_format in FORMATS:
        urls[store_format] = str(tmp_path / store_format)
        bench.write_store(urls[store_format], records, small_manifest(store_format))
    wanted = [7, 0, 3, 3]
    batch = open_store(urls["zarr"]).batch(wanted)
    flat = readers.flat_files(tmp_path, frames)
    packed = frames.packed(wanted, lambda name, frame, to: np.copyto(to, flat[name][slice(*frames.rows(name, frame))]))
    for name in ARRAYS:
        family, _, member = name.partition("/")
        np.testing.assert_array_equal(packed[name], getattr(getattr(batch, family), member).numpy())
    assert sum(array.nbytes for array in packed.values()) == sum(len(frames.bytes_of(frame)) for frame in wanted)
    for reader in [
        *copies(frames, flat["tokens/feat"]),
        *readers.our_readers(urls, frames),
        *readers.collating(frames),
        *readers.loaders(urls, frames),
        *readers.other_readers(tmp_path, urls, frames),
    ]:
        reader.read()
