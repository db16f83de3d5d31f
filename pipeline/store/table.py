"""Where every frame of a store is in its shards' files, learned when a clip is first asked for.

From then on a batch needs no work by shard, clip or frame but that of copying: places follow by indexing. Shards are
immutable, so that places hold when a shard is closed and mapped again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.shards import EXTRA, offset_name
from pipeline.store.decode import Unpacking
from pipeline.store.errors import ShardError
from pipeline.store.open_shards import OpenShards
from pipeline.store.places import Pieces, Places, RowType, need_array
from pipeline.store.shard import FileShard


@dataclass(frozen=True)
class _Column:
    """An uncompressed array: what a row is, its bytes, and the first byte i8 [clips] of each clip that is known."""

    kind: RowType
    row: int
    start: Array


class FrameTable:
    """What a process knows of the places of a store's frames. Pickled without what it has learned.

    Args:
        shards: the shards by number.
        shard: i4 [clips], the shard of each clip. row: i4 [clips], the clip's place in it.
        start: i8 [clips+1], frames of clip i are start[i]:start[i+1].
    """

    def __init__(self, shards: OpenShards, *, shard: Array, row: Array, start: Array) -> None:
        self.shards, self.shard, self.row, self.start = shards, shard, row, start
        self._columns: dict[str, _Column] = {}
        self._rows: dict[str, tuple[Array, Array]] = {}
        self._known: dict[str, Array] = {}
        self._known_together: dict[tuple[str, ...], Array] = {}
        self._order: tuple[Array, Array] | None = None

    def reader(self, clip: int) -> FileShard:
        """The shard of a clip. ShardError when it is missing, damaged, or has other frames than the index says."""
        reader = self.shards.reader(int(self.shard[clip]))
        row, frames = int(self.row[clip]), int(self.start[clip + 1] - self.start[clip])
        if row >= len(reader.lengths) or int(reader.lengths[row]) != frames:
            raise _misplaced(reader, row)
        return reader

    def learn(self, names: tuple[str, ...], clips: Array) -> None:
        """Get to know the places of these clips in uncompressed arrays and offset arrays.

        Raises ValueError for an array that is not there, ShardError for a shard that is damaged.
        """
        known = self._known_together.get(names)
        if known is None:
            known = self._known_together[names] = np.zeros(len(self.row), dtype=bool)
        if not known[clips].all():
            with self.shards.lock:
                for name in names:
                    self._learn(name, clips)
                known[clips] = True

    def column(self, name: str) -> _Column:
        """An uncompressed array that was learned."""
        return self._columns[name]

    def rows(self, offset: str) -> tuple[Array, Array]:
        """First row in its clip, and number of rows, i8 [frames] each, of every frame, by a learned offset array."""
        return self._rows[offset]

    def _learn(self, name: str, clips: Array) -> None:
        if name not in self._known:
            self._known[name] = np.zeros(len(self.row), dtype=bool)
        known = self._known[name]
        new = np.unique(clips[~known[clips]])
        for number in np.unique(self.shard[new]).tolist():
            asked = new[self.shard[new] == number]
            reader = self.shards.reader(number)
            need_array(name, [reader])
            chosen = self._clips_of(number) if reader.whole else asked
            self._check(reader, chosen)
            if name.endswith("/offset"):
                self._learn_rows(name, reader, chosen)
            else:
                chosen = self._learn_column(name, reader, chosen, asked)
            known[chosen] = True

    def _learn_column(self, name: str, reader: FileShard, clips: Array, asked: Array) -> Array:
        """The clips that are known now: all that have rows for their frames."""
        if name.startswith(EXTRA):
            lengths = np.array([reader.length(name, row) for row in self.row[clips].tolist()])
            clips = clips[lengths == np.diff(self.start)[clips]]
            if not np.isin(asked, clips).all():
                raise ValueError(f"{name!r} has no row for each frame: read it with store[i].extra")
        start, dtype, shape = reader.extent(name, self.row[clips])
        kind = RowType(dtype, shape)
        column = self._columns.get(name)
        if column is None:
            row = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            column = self._columns[name] = _Column(kind, row, np.zeros(len(self.row), dtype=np.int64))
        if column.kind != kind:
            raise ShardError(reader.name, name, f"has rows {dtype} {shape}, other shards {column.kind}")
        column.start[clips] = start
        return clips

    def _learn_rows(self, offset: str, reader: FileShard, clips: Array) -> None:
        if offset not in self._rows:
            frames = int(self.start[-1])
            # zeros cost no memory before they are written to
            self._rows[offset] = np.zeros(frames, dtype=np.int64), np.zeros(frames, dtype=np.int64)
        begin, length = self._rows[offset]
        count = self.start[clips + 1] - self.start[clips]
        shift = np.repeat(self.start[clips] - np.cumsum(count) + count, count)
        frame = shift + np.arange(len(shift))
        begin[frame], length[frame] = reader.frame_rows(offset, self.row[clips])

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("shards", "shard", "row", "start")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _check(self, reader: FileShard, clips: Array) -> None:
        row, frames = self.row[clips], self.start[clips + 1] - self.start[clips]
        wrong = row >= len(reader.lengths)
        wrong[~wrong] = reader.lengths[row[~wrong]] != frames[~wrong]
        if wrong.any():
            raise _misplaced(reader, int(row[wrong.argmax()]))

    def _clips_of(self, number: int) -> Array:
        """The clips of a shard."""
        if self._order is None:
            order = np.argsort(self.shard, kind="stable")
            self._order = order, self.shard[order]
        order, shard = self._order
        low, high = np.searchsorted(shard, [number, number + 1])
        return order[low:high]


def _misplaced(reader: FileShard, row: int) -> ShardError:
    return ShardError(reader.name, None, f"clip {row} has other frames than the index says: `--verify` the store")


class TablePlaces(Places):
    """Frames of a store by its table.

    Args:
        table: of the store.
        flat: i8 [B], flat indices of the frames. clip: i8 [B], the clip of each. frame: i8 [B], its place in the clip.
    """

    def __init__(self, table: FrameTable, flat: Array, clip: Array, frame: Array) -> None:
        self._table, self._flat, self._clip, self._frame = table, flat, clip, frame
        self._cut: dict[str, tuple[Array, Array]] = {}
        self._of_clips: list[tuple[FileShard, int, list[int], list[int]]] | None = None

    def __len__(self) -> int:
        return len(self._flat)

    def pieces(self, names: Sequence[str]) -> list[Pieces]:
        """By indexing alone, once the clips are known."""
        table, clip = self._table, self._clip
        offsets = [offset_name(name) for name in names]
        table.learn((*names, *(offset for offset in offsets if offset is not None)), clip)
        columns = [table.column(name) for name in names]
        start, stop = np.empty((2, len(names), len(self)), dtype=np.int64)
        for column, offset, first, end in zip(columns, offsets, start, stop, strict=True):
            begin, length = (self._frame, 1) if offset is None else self._cuts(offset)
            np.multiply(begin, column.row, out=first)
            np.add(first, column.start[clip], out=first)
            np.multiply(length, column.row, out=end)
            np.add(end, first, out=end)
        files = table.shards.slices(table.shard[clip].tolist()) if names else []
        places = zip(columns, start.tolist(), stop.tolist(), strict=True)
        return [Pieces(column.kind, files, first, end) for column, first, end in places]

    def lengths(self, offset: str) -> Array:
        """From the table."""
        self._table.learn((offset,), self._clip)
        return self._cuts(offset)[1]

    def row_shape(self, name: str) -> tuple[int, ...]:
        """That of the first frame."""
        clip = int(self._clip[0])
        reader = self._table.reader(clip)
        need_array(name, [reader])
        return reader.row_shape(name, int(self._table.row[clip]))

    def unpackings(self, name: str, out: Array) -> list[Unpacking]:
        """Clip by clip, for the frames of a clip may be compressed together."""
        if self._of_clips is None:
            self._of_clips = list(self._by_clip())
        return [Unpacking(reader, name, row, frames, out, at) for reader, row, frames, at in self._of_clips]

    def _by_clip(self) -> Iterator[tuple[FileShard, int, list[int], list[int]]]:
        """(shard, the clip's row in it, frames of the clip, their rows in the batch) of each clip."""
        order = np.argsort(self._clip, kind="stable")
        clips, first = np.unique(self._clip[order], return_index=True)
        frame, at, last = self._frame[order].tolist(), order.tolist(), [*first[1:].tolist(), len(order)]
        for clip, begin, end in zip(clips.tolist(), first.tolist(), last, strict=True):
            yield self._table.reader(clip), int(self._table.row[clip]), frame[begin:end], at[begin:end]

    def _cuts(self, offset: str) -> tuple[Array, Array]:
        if offset not in self._cut:
            begin, length = self._table.rows(offset)
            self._cut[offset] = begin[self._flat], length[self._flat]
        return self._cut[offset]
