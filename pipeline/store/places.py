"""Where the frames of a batch are: pieces of mapped files, or frames to be decompressed.

Shape legend: B frames of the batch, n arrays asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data_specs.arrays import Array
from data_specs.shards import offset_name
from pipeline.store.columns import raw_bytes
from pipeline.store.decode import Unpacking
from pipeline.store.shard import ShardReader


class RowType(NamedTuple):
    """What a row of an array is: its dtype, and its shape without the first dimension."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


class Pieces(NamedTuple):
    """The bytes of an array for each of B frames, whole rows of one type, where they lie.

    `lengths` i8 [B] are the rows of each frame, None where that is one.
    """

    kind: RowType
    lengths: Array | None
    parts: Sequence[memoryview]


class Places(ABC):
    """B frames, wherever they are. Methods raise ValueError for an array that is not there, ShardError for damage."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pieces(self, names: Sequence[str]) -> Iterable[Pieces]:
        """The bytes of uncompressed arrays, in the order of `names`; each is looked up when it is asked for."""

    @abstractmethod
    def row_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a row of an array that may be compressed."""

    @abstractmethod
    def unpackings(self, name: str, out: Array) -> list[Unpacking]:
        """What writes the rows [B, ...] of an array that may be compressed to `out`."""


def need_array(name: str, readers: Iterable[ShardReader]) -> None:
    """ValueError for a shard that lacks an array."""
    for reader in readers:
        if name not in reader.arrays:
            raise ValueError(f"the store has no {name!r}: shard {reader.name} holds {', '.join(reader.arrays)}")


class ClipPlaces(Places):
    """Frames given one by one as (shard, row of the clip in it, frame of the clip)."""

    def __init__(self, places: Sequence[tuple[ShardReader, int, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def pieces(self, names: Sequence[str]) -> Iterator[Pieces]:
        """Each frame's rows by themselves."""
        for name in names:
            need_array(name, (reader for reader, _, _ in self._places))
            rows = [reader.frame(name, clip, frame) for reader, clip, frame in self._places]
            kind = RowType(rows[0].dtype, rows[0].shape[1:])
            lengths = None if offset_name(name) is None else np.array([len(part) for part in rows], dtype=np.int64)
            yield Pieces(kind, lengths, [raw_bytes(part) for part in rows])

    def row_shape(self, name: str) -> tuple[int, ...]:
        """That of the first frame."""
        need_array(name, (reader for reader, _, _ in self._places))
        reader, clip, _ = self._places[0]
        return reader.row_shape(name, clip)

    def unpackings(self, name: str, out: Array) -> list[Unpacking]:
        """Frame by frame."""
        return [
            Unpacking(reader, name, clip, [frame], out, [b]) for b, (reader, clip, frame) in enumerate(self._places)
        ]


class HeldFrames(Places):
    """Frames in memory, each its arrays by name as `hold` keeps them: what a replay or a cache of frames collates."""

    def __init__(self, frames: Sequence["HeldFrame"]) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def pieces(self, names: Sequence[str]) -> Iterator[Pieces]:
        """Each frame's arrays whole."""
        cuts = dict[str, Array]()
        for name in names:
            parts = [frame[name] for frame in self._frames]
            cut = offset_name(name)
            if cut is not None and cut not in cuts:
                cuts[cut] = np.array([part.rows for part in parts], dtype=np.int64)
            yield Pieces(parts[0].kind, None if cut is None else cuts[cut], [part.data for part in parts])

    def row_shape(self, name: str) -> tuple[int, ...]:
        """That of the first frame."""
        return self._frames[0][name].kind.shape

    def unpackings(self, name: str, out: Array) -> list[Unpacking]:
        """Nothing here is compressed."""
        for b, frame in enumerate(self._frames):
            part = frame[name]
            out[b] = np.frombuffer(part.data, dtype=part.kind.dtype).reshape(part.kind.shape)
        return []


class Held(NamedTuple):
    """The rows of an array that belong to a frame."""

    kind: RowType
    rows: int
    data: memoryview


HeldFrame = Mapping[str, Held]


def hold(arrays: Mapping[str, Array]) -> HeldFrame:
    """A frame's arrays by name (`tokens/feat` [N',C], `camera/range` [1,2]) for `HeldFrames`.

    Copies only what is not contiguous.
    """
    return {
        name: Held(RowType(array.dtype, array.shape[1:]), len(array), raw_bytes(array))
        for name, array in arrays.items()
    }


_OTHERS = "the stores have rows of other shapes in {name!r} ({shapes}): read one store at a time"


class JoinedPlaces(Places):
    """Frames of several stores: part i gives the frames at positions `at[i]` of the batch."""

    def __init__(self, parts: Sequence[Places], at: Sequence[Array]) -> None:
        self._parts, self._at = parts, [positions.tolist() for positions in at]

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def pieces(self, names: Sequence[str]) -> Iterator[Pieces]:
        """In the order of the batch."""
        each = zip(*(part.pieces(names) for part in self._parts), strict=True)
        return (self._merged(name, pieces) for name, pieces in zip(names, each, strict=True))

    def row_shape(self, name: str) -> tuple[int, ...]:
        """That of all parts; ValueError when they differ."""
        first, *others = (part.row_shape(name) for part in self._parts)
        if any(other != first for other in others):
            raise ValueError(_OTHERS.format(name=name, shapes={first, *others}))
        return first

    def unpackings(self, name: str, out: Array) -> list[Unpacking]:
        """To the rows of the batch."""
        tasks = []
        for part, at in zip(self._parts, self._at, strict=True):
            tasks += [replace(task, rows=[at[row] for row in task.rows]) for task in part.unpackings(name, out)]
        return tasks

    def _merged(self, name: str, pieces: Sequence[Pieces]) -> Pieces:
        kinds = {part.kind for part in pieces}
        if len(kinds) > 1:
            raise ValueError(_OTHERS.format(name=name, shapes=kinds))
        lengths = None if pieces[0].lengths is None else np.empty(len(self), dtype=np.int64)
        parts: list[Any] = [None] * len(self)
        for one, at in zip(pieces, self._at, strict=True):
            if lengths is not None:
                lengths[at] = np.asarray(one.lengths)
            for b, part in zip(at, one.parts, strict=True):
                parts[b] = part
        return Pieces(pieces[0].kind, lengths, parts)
