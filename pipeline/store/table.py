"""Where every frame of a store is in its shards' files, learned when a clip is first asked for.

From then on a batch needs no work by shard, clip or frame but that of copying: places follow by indexing. Shards are
immutable, so that places hold when a shard is closed and mapped again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import exclusive_sum
from data_specs.shards import EXTRA, offset_name
from pipeline.store.decode import Unpacking
from pipeline.store.errors import ShardError, StoreError
from pipeline.store.files import Sliced
from pipeline.store.open_shards import OpenShards
from pipeline.store.places import Pieces, Places, RowType, need_array
from pipeline.store.shard import FileShard


class FrameTable:
    """What a process knows of the places of a store's frames. Pickled without what it has learned.

    Args:
        shards: the shards by number.
        shard: i4 [clips], the shard of each clip. row: i4 [clips], the clip's place in it.
        start: i8 [clips+1], frames of clip i are start[i]:start[i+1].
    """

    def __init__(self, shards: OpenShards, *, shard: Array, row: Array, start: Array) -> None:
        self.shards, self.shard, self.row, self.start = shards, shard, row, start
        self._columns: dict[tuple[str, ...], _Columns] = {}
        self._order: tuple[Array, Array] | None = None

    def reader(self, clip: int) -> FileShard:
        """The shard of a clip. ShardError when it is missing, damaged, or has other frames than the index says."""
        reader = self.shards.reader(int(self.shard[clip]))
        row, frames = int(self.row[clip]), int(self.start[clip + 1] - self.start[clip])
        if row >= len(reader.lengths) or int(reader.lengths[row]) != frames:
            raise _misplaced(reader, row)
        return reader

    def pieces(self, names: tuple[str, ...], flat: Array) -> Iterator[Pieces]:
        """Where frames i8 [B] are in uncompressed arrays.

        Raises ValueError for an array that is not there, ShardError for a shard that is damaged.
        """
        columns = self._columns.get(names)
        if columns is None:
            columns = self._columns[names] = _Columns(names, int(self.start[-1]))
        found = columns.table.take(flat, axis=0)
        numbers = found[:, 0].tolist()
        if 0 in numbers:
            with self.shards.lock:
                self._learn(columns, np.unique(self.clip_of(flat[found[:, 0] == 0])))
            found = columns.table.take(flat, axis=0)
            numbers = found[:, 0].tolist()
        return columns.pieces(found, self.shards.slices([number - 1 for number in numbers]))

    def clip_of(self, flat: Array) -> Array:
        """The clip i8 [B] of each frame."""
        return np.asarray(np.searchsorted(self.start, flat, side="right") - 1)

    def _learn(self, columns: "_Columns", clips: Array) -> None:
        for number in np.unique(self.shard[clips]).tolist():
            asked = clips[self.shard[clips] == number]
            reader = self.shards.reader(number)
            for name in columns.names:
                need_array(name, [reader])
            chosen = self._clips_of(number) if reader.whole else asked
            self._check(reader, chosen)
            for name in columns.names:
                if name.startswith(EXTRA):
                    rows = np.array([reader.length(name, row) for row in self.row[chosen].tolist()])
                    chosen = chosen[rows == np.diff(self.start)[chosen]]
                    if not np.isin(asked, chosen).all():
                        raise ValueError(f"{name!r} has no row for each frame: read it with store[i].extra")
            count = self.start[chosen + 1] - self.start[chosen]
            inside = np.arange(count.sum()) - np.repeat(exclusive_sum(count)[:-1], count)
            frame = np.repeat(self.start[chosen], count) + inside
            columns.fill(reader, self.row[chosen], frame, inside, number)

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


class _Columns:
    """Places of some uncompressed arrays, side by side: what a batch asks for lies together.

    `table` i8 [frames, 1+n+k]: the number of the shard counted from 1, or 0 where nothing is known; the first byte in
    each of n arrays; the rows by each of k ways to cut arrays into frames.
    """

    def __init__(self, names: tuple[str, ...], frames: int) -> None:
        self.names = names
        offsets = [offset_name(name) for name in names]
        self._cuts = list(dict.fromkeys(offsets))
        self._cut = np.array([self._cuts.index(offset) for offset in offsets], dtype=np.intp)
        self._kinds: dict[str, RowType] = {}
        self._row = np.zeros(len(names), dtype=np.int64)
        # zeros cost no memory before they are written to
        try:
            self.table = np.zeros((frames, 1 + len(names) + len(self._cuts)), dtype=np.int64)
        except (MemoryError, ValueError):
            raise StoreError(f"The index lists {frames:,} frames, more than there is memory to place.") from None

    def fill(self, reader: FileShard, rows: Array, frame: Array, inside: Array, number: int) -> None:
        """Take in the clips `rows` of a shard, whose frames `frame` are `inside` their clips."""
        n, count = len(self.names), reader.lengths[rows]
        found = np.empty((len(frame), self.table.shape[1]), dtype=np.int64)
        first: list[Array] = []
        for k, offset in enumerate(self._cuts):
            begin, length = (inside, 1) if offset is None else reader.frame_rows(offset, rows)
            first.append(begin)
            found[:, 1 + n + k] = length
        for i, name in enumerate(self.names):
            start, dtype, shape = reader.extent(name, rows)
            kind = RowType(dtype, shape)
            if self._kinds.setdefault(name, kind) != kind:
                raise ShardError(reader.name, name, f"has rows {dtype} {shape}, other shards {self._kinds[name]}")
            self._row[i] = np.prod(shape, dtype=np.int64) * dtype.itemsize
            found[:, 1 + i] = np.repeat(start, count) + first[self._cut[i]] * self._row[i]
        found[:, 0] = 0
        self.table[frame] = found
        self.table[frame, 0] = number + 1  # last: another thread may look at any time

    def pieces(self, found: Array, files: Sequence[Sliced]) -> Iterator[Pieces]:
        """What rows of the table say of B frames, which are in these files."""
        n = len(self.names)
        start, rows = found[:, 1 : 1 + n], found[:, 1 + n :]
        stop = start + rows.take(self._cut, axis=1) * self._row
        for i, (first, last) in enumerate(zip(start.T.tolist(), stop.T.tolist(), strict=True)):
            name, k = self.names[i], self._cut[i]
            lengths = None if self._cuts[k] is None else rows[:, k]
            # a memoryview's slices are the cheapest that Python has: 0.1 us a piece
            parts = [file[low:high] for file, low, high in zip(files, first, last, strict=True)]
            yield Pieces(self._kinds[name], lengths, parts)


class TablePlaces(Places):
    """Frames i8 [B] of a store by its table, all of them inside."""

    def __init__(self, table: FrameTable, flat: Array) -> None:
        self._table, self._flat = table, flat
        self._of_clips: list[tuple[FileShard, int, list[int], list[int]]] | None = None

    def __len__(self) -> int:
        return len(self._flat)

    def pieces(self, names: Sequence[str]) -> Iterator[Pieces]:
        """By indexing alone, once the clips are known."""
        return self._table.pieces(tuple(names), self._flat) if names else iter(())

    def row_shape(self, name: str) -> tuple[int, ...]:
        """That of the first frame."""
        clip = int(self._table.clip_of(self._flat[:1])[0])
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
        table, clip = self._table, self._table.clip_of(self._flat)
        order = np.argsort(clip, kind="stable")
        clips, first = np.unique(clip[order], return_index=True)
        frame, at = (self._flat - table.start[clip])[order].tolist(), order.tolist()
        for number, begin, end in zip(clips.tolist(), first.tolist(), [*first[1:].tolist(), len(order)], strict=True):
            yield table.reader(number), int(table.row[number]), frame[begin:end], at[begin:end]
