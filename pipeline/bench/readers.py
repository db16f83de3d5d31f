"""Ways to read random pairs of frames into packed arrays, ours and others', over the same frames.

Each way that is not ours is written as its users would write it, at its best: arrays of the batch are allocated once,
and what a library can read in place is read in place.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import webdataset
import zarr
from torch.utils.data import DataLoader, Sampler

from data_specs.arrays import Array
from data_specs.records import ClipRecord, exclusive_sum
from data_specs.shards import offset_name
from pipeline.store import open_store
from pipeline.store.assemble import assemble
from pipeline.store.columns import record_arrays
from pipeline.store.loader import Store
from pipeline.store.mapping import map_file
from pipeline.store.places import HeldFrames, hold

COLUMNS = ("tokens", "cells")
POINT_COLUMNS = ("points", "camera", "tokens")
ARRAYS = ("tokens/feat", "tokens/coord", "tokens/count", "cells/cell", "cells/token", "cells/count")
OFFSETS = ("tokens/offset", "cells/offset")
PAIRS = 64
LOADED = 24
"""Batches of an epoch of a `DataLoader`: a call reads a whole one, so that nothing is read before the clock starts."""
WORKERS_BY = "spawn"
COLLATE = "collate frames that are in memory"
QUICK = 12
"""Calls in a row of a reader that takes milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A way to read, what it is called, how many bytes (arrays without offsets) a call reads, and torch's threads.

    `alone` says that this process does all the work, so that its CPU time is what the reading costs. `calls` of it are
    timed in a row, after a few that are not: a loader reads batch after batch.
    """

    label: str
    read: Callable[[], Any]
    bytes: float
    threads: int = 1
    alone: bool = True
    calls: int = 3


class Frames:
    """The frames of all clips end to end, in memory; what a reader of them must give back."""

    def __init__(self, records: Sequence[ClipRecord]) -> None:
        each = [record_arrays(record) for record in records]
        self.arrays = {name: np.concatenate([arrays[name] for arrays in each]) for name in ARRAYS}
        self.ends = {
            name: exclusive_sum(np.concatenate([np.diff(arrays[name]) for arrays in each])) for name in OFFSETS
        }
        self.count = len(self.ends[OFFSETS[0]]) - 1
        size = sum(array.nbytes for array in self.arrays.values())
        self.mean = size / self.count
        """Bytes of a frame."""
        self._room = {name: np.empty_like(array) for name, array in self.arrays.items()}

    def rows(self, name: str, frame: int) -> tuple[int, int]:
        """First and last row of a frame."""
        ends = self.ends[offset_name(name) or ""]
        return int(ends[frame]), int(ends[frame + 1])

    def packed(self, frames: Sequence[int], copy: Callable[[str, int, Array], None]) -> dict[str, Array]:
        """What `copy(name, frame, to)` reads of frames, end to end in arrays that are allocated once."""
        out = {}
        for name, room in self._room.items():
            at = 0
            for frame in frames:
                start, stop = self.rows(name, frame)
                copy(name, frame, room[at : at + stop - start])
                at += stop - start
            out[name] = room[:at]
        return out

    def bytes_of(self, frame: int) -> Array:
        """A frame's arrays one after the other, u1."""
        parts = [self.arrays[name][slice(*self.rows(name, frame))] for name in ARRAYS]
        return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def random_frames(count: int, size: int) -> Iterator[list[int]]:
    """Frames drawn evenly from `count`, `size` at a time."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(0, count, size).tolist()


def our_readers(urls: dict[str, str], frames: Frames) -> Iterator[Reader]:
    """`Store.batch` of each store, with one thread and with as many as torch has."""
    for threads in sorted({1, torch.get_num_threads()}):
        for name, url in urls.items():
            store, label = open_store(url), f"{name} store, {threads} thread{'s' * (threads > 1)}"
            read = _batches(store, random_frames(frames.count, 2 * PAIRS), COLUMNS)
            whole = partial(Reader, bytes=2 * PAIRS * frames.mean, threads=threads, calls=QUICK)
            yield whole(label=label, read=read)
            yield whole(label=f"{label}, the batch before still held", read=_holding(read))
            size = _point_bytes(store)
            yield Reader(
                label=f"{label}: {PAIRS} frames with {', '.join(POINT_COLUMNS)}",
                read=_batches(store, random_frames(frames.count, PAIRS), POINT_COLUMNS),
                bytes=PAIRS * size,
                threads=threads,
            )


def loaders(urls: dict[str, str], frames: Frames) -> Iterator[Reader]:
    """A `DataLoader` over each store, in this process and with 2 workers, which live as long as the reader."""
    for name, url in urls.items():
        for workers in (0, 2):
            store = open_store(url)
            loader = store.view(COLUMNS).loader(
                batch_sampler=_Drawn(frames.count),
                num_workers=workers,
                persistent_workers=workers > 0,
                multiprocessing_context=WORKERS_BY if workers else None,
                timeout=120 if workers else 0,
            )
            yield Reader(
                label=f"DataLoader over {name}, {workers} workers",
                read=partial(_epoch, loader),
                bytes=LOADED * 2 * PAIRS * frames.mean,
                alone=workers == 0,
            )


class _Drawn(Sampler[list[int]]):
    """Batches of random frames, other ones every epoch."""

    def __init__(self, count: int) -> None:
        self._drawn = random_frames(count, 2 * PAIRS)

    def __len__(self) -> int:
        return LOADED

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._drawn, LOADED)


def _epoch(loader: "DataLoader[Any]") -> None:
    for batch in loader:
        del batch


def _point_bytes(store: Store) -> float:
    """Bytes of a frame with its points in a batch."""
    sizes: list[int] = []
    some = range(min(PAIRS, store.num_frames))
    store.batch(some, POINT_COLUMNS).map(lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    return sum(sizes) / len(some)


def _batches(store: Store, drawn: Iterator[list[int]], columns: Sequence[str]) -> Callable[[], Any]:
    return lambda: store.batch(next(drawn), columns)


def _holding(read: Callable[[], Any]) -> Callable[[], None]:
    held: list[Any] = [None]

    def reads() -> None:
        held[0] = read()

    return reads


def collating(frames: Frames) -> Iterator[Reader]:
    """Ragged frames in memory, each array by itself, as one packed batch with offsets."""
    drawn = random_frames(frames.count, 2 * PAIRS)
    held = [
        hold({name: frames.arrays[name][slice(*frames.rows(name, frame))].copy() for name in ARRAYS})
        for frame in range(frames.count)
    ]

    def read() -> Any:
        chosen = next(drawn)
        index = np.asarray(chosen)
        return assemble(HeldFrames([held[frame] for frame in chosen]), COLUMNS, index=index, time=index * 0.0)

    for threads in sorted({1, torch.get_num_threads()}):
        label = f"{COLLATE}, {threads} thread{'s' * (threads > 1)}"
        yield Reader(label=label, read=read, bytes=2 * PAIRS * frames.mean, threads=threads, calls=QUICK)


def other_readers(folder: Path, urls: dict[str, str], frames: Frames) -> Iterator[Reader]:
    """Everything else, of files that it writes into `folder` first, and of our own shards."""
    yield _slices("flat arrays, mapped", flat_files(folder, frames), frames)
    yield _npy(folder, frames)
    yield _hdf5(folder / "frames.h5", frames)
    yield _zarr_frames(folder / "frames.zarr", frames)
    yield _zarr_shard(urls["zarr"], frames)
    for each in (1, 5):
        yield _webdataset(urls["webdataset"], frames, each)


def flat_files(folder: Path, frames: Frames) -> dict[str, Array]:
    """The arrays of all frames end to end, each a file that is mapped."""
    found = {}
    for name, array in frames.arrays.items():
        path = folder / name.replace("/", ".")
        array.tofile(path)
        with path.open("rb") as file:
            data = map_file(file.fileno(), array.nbytes)
        found[name] = np.frombuffer(data, dtype=array.dtype).reshape(array.shape)
    return found


def _slices(label: str, flat: dict[str, Array], frames: Frames) -> Reader:
    drawn = random_frames(frames.count, 2 * PAIRS)

    def copy(name: str, frame: int, to: Array) -> None:
        start, stop = frames.rows(name, frame)
        to[...] = flat[name][start:stop]

    return Reader(label=label, read=lambda: frames.packed(next(drawn), copy), bytes=2 * PAIRS * frames.mean)


def _npy(folder: Path, frames: Frames) -> Reader:
    for frame in range(frames.count):
        np.save(folder / f"{frame}.npy", frames.bytes_of(frame))
    return _whole_frames("a .npy file a frame", lambda frame: np.load(folder / f"{frame}.npy"), frames, 2 * PAIRS)


def _whole_frames(label: str, load: Callable[[int], Array], frames: Frames, size: int) -> Reader:
    drawn = random_frames(frames.count, size)
    room = np.empty(round(2 * size * frames.mean), np.uint8)

    def read() -> None:
        at = 0
        for frame in next(drawn):
            data = load(frame)
            room[at : at + len(data)] = data
            at += len(data)

    return Reader(label=label, read=read, bytes=size * frames.mean)


def _hdf5(path: Path, frames: Frames) -> Reader:
    with h5py.File(path, "w") as file:
        for name, array in frames.arrays.items():
            file.create_dataset(name, data=array)
    file = h5py.File(path, "r")
    found = {name: file[name] for name in ARRAYS}
    drawn = random_frames(frames.count, PAIRS // 2)

    def copy(name: str, frame: int, to: Array) -> None:
        start, stop = frames.rows(name, frame)
        found[name].read_direct(to, np.s_[start:stop])

    return Reader(
        label="h5py, contiguous", read=lambda: frames.packed(next(drawn), copy), bytes=PAIRS // 2 * frames.mean
    )


def _zarr_frames(path: Path, frames: Frames) -> Reader:
    """A chunk a frame, uncompressed and as long as the longest frame."""
    each = [frames.bytes_of(frame) for frame in range(frames.count)]
    width = max(map(len, each))
    array = zarr.create_array(
        str(path), shape=(len(each), width), chunks=(1, width), dtype="u1", compressors=None, zarr_format=3
    )
    for frame, data in enumerate(each):
        array[frame, : len(data)] = data
    return _whole_frames(
        "plain zarr, a chunk a frame", lambda frame: np.asarray(array[frame])[: len(each[frame])], frames, PAIRS // 4
    )


def _zarr_shard(url: str, frames: Frames) -> Reader:
    """Our own shard by zarr alone. It reads a whole column for each frame."""
    path = min((Path(url) / "shards").glob("*.zip"))
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r", zarr_format=3)
    found = {name: group[name] for name in ARRAYS}
    ends = {name: np.asarray(group[name][:]) for name in OFFSETS}  # type: ignore[index]
    drawn = random_frames(len(ends[OFFSETS[0]]) - 1, 2)

    def read() -> Any:
        for frame in next(drawn):
            for name in ARRAYS:
                start, stop = ends[str(offset_name(name))][frame : frame + 2].tolist()
                found[name][start:stop]  # type: ignore[index]

    return Reader(label="plain zarr, our shard", read=read, bytes=2 * frames.mean)


def _webdataset(url: str, frames: Frames, each: int) -> Reader:
    """Our tar shards in sequence, `each` pairs of random frames of every clip."""
    shards = sorted(str(path) for path in (Path(url) / "shards").glob("*.tar"))
    clips = iter(webdataset.WebDataset(shards, shardshuffle=False).repeat())
    generator = np.random.default_rng(0)
    calls = 8

    def read() -> None:
        for _ in range(calls):
            sample = next(clips)
            arrays = {name: np.load(BytesIO(sample[f"{name.replace('/', '.')}.npy"])) for name in (*ARRAYS, *OFFSETS)}
            drawn = generator.integers(0, len(arrays[OFFSETS[0]]) - 1, 2 * each).tolist()
            for name in ARRAYS:
                ends = arrays[str(offset_name(name))]
                np.concatenate([arrays[name][ends[frame] : ends[frame + 1]] for frame in drawn])

    pairs = "pair" if each == 1 else "pairs"
    return Reader(
        label=f"WebDataset in sequence, {each} {pairs} a clip", read=read, bytes=calls * 2 * each * frames.mean
    )
