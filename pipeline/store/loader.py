"""Reads a store: a map-style dataset of clips, batches of frames, pairs of frames."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_specs.arrays import Array
from data_specs.batches import CloudBatch, FrameBatch
from data_specs.records import ClipRecord, exclusive_sum
from data_specs.shards import Manifest
from pipeline.store.assemble import assemble, columns_of
from pipeline.store.columns import content_digest, record_from_arrays
from pipeline.store.errors import StoreError, StoreRequestError
from pipeline.store.index import index_shards
from pipeline.store.language import LanguageTable, read_language
from pipeline.store.layout import StoreLayout
from pipeline.store.open_shards import OpenShards
from pipeline.store.pairs import PairIndex, find_pairs
from pipeline.store.places import Places
from pipeline.store.shard import ShardReader
from pipeline.store.shard_cache import ShardCache
from pipeline.store.table import FrameTable, TablePlaces
from pipeline.store.views import FrameView, PairView
from stages.clouds import unpack_clouds

Indices = Sequence[int] | Array | Tensor


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What the index says of a clip. `row` is its place in `shard`, `time` the times of its frames in seconds."""

    key: str
    split: str
    text: str
    shard: str
    row: int
    frames: int
    time: Array
    digest: str


class Store(Dataset[ClipRecord]):
    """A store as a map-style dataset of clips, sorted by key, whatever the format and the shard size.

    `store[i]` is a `ClipRecord`; its arrays may be read-only views of the file. Frames are numbered through all clips
    (`frames`, `clip_of`); `batch` packs any of them into tensors. Only the columns asked for are read. A store can be
    pickled and forked: every process opens the shards it needs by itself.
    """

    def __init__(
        self,
        path: str,
        *,
        split: str | None = None,
        cache: ShardCache | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.layout = StoreLayout.open(str(path))
        self.cache = cache
        """Where whole shards are kept before they are read; None reads them where they are."""
        self.split = split
        self._without = pa.array(sorted(without), pa.string())
        # the rest of the index is read when it is asked for: of 10 million clips it is some gigabytes
        table = self.layout.index(("split", "shard", "row", "frames"))
        self._listed = len(table)
        table = self._whole(table)
        self.left_out = self._listed - len(table)
        """Clips in the shards that the store was to be opened `without`: damaged ones (see `open_checked`)."""
        if split is not None:
            known = sorted(pc.unique(table["split"]).to_pylist())
            table = table.filter(pc.equal(table["split"], split))
            if len(table) == 0:
                choices = ", ".join(known) or "no clips at all"
                raise StoreRequestError(f"The store at {path} has no clips of split {split!r}. It has: {choices}.")
        names = table["shard"].combine_chunks().dictionary_encode()
        found = names.dictionary.to_pylist()
        _check_index(table, found, str(path))
        shards = sorted(found)
        self.shards = tuple(shards)
        """Names of the shards that hold the clips."""
        place = {name: i for i, name in enumerate(shards)}
        self.start = exclusive_sum(table["frames"].to_numpy())
        """i8 [n+1]: frames of clip i are start[i]:start[i+1]."""
        number = np.array([place[name] for name in found], dtype=np.int32)
        self._table = FrameTable(
            OpenShards(self.layout, shards, cache),
            shard=number[names.indices.to_numpy(zero_copy_only=False)],
            row=table["row"].to_numpy().astype(np.int32),
            start=self.start,
        )

    @cached_property
    def clips(self) -> Any:
        """The index as a `pyarrow.Table`, a row a clip (see `pipeline.store.index`)."""
        return self._index(None).combine_chunks()

    @cached_property
    def time(self) -> Array:
        """f8 [F], seconds of every frame in its video."""
        times = self._index(("split", "shard", "time"))["time"].combine_chunks()
        flat = np.asarray(times.flatten(), dtype=np.float64) if len(self) else np.zeros(0)
        if len(flat) != self.num_frames:
            raise StoreError(_MISCOUNTED.format(self.layout.url, f"{len(flat)} times for {self.num_frames} frames"))
        return flat

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content of the whole store, by clip and frame; of the clips that are not left out."""
        table = self._listing(("key", "shard", "digest"))
        return content_digest(zip(table["key"].to_pylist(), table["digest"].to_pylist(), strict=True))

    def through(self, cache: ShardCache) -> "Store":
        """The same clips, read by way of a cache of whole shards."""
        return Store(self.layout.url, split=self.split, cache=cache, without=self._without.to_pylist())

    def _index(self, columns: tuple[str, ...] | None) -> Any:
        table = self._listing(columns)
        return table if self.split is None else table.filter(pc.equal(table["split"], self.split))

    def _listing(self, columns: tuple[str, ...] | None) -> Any:
        """Columns of the index, all splits. StoreError when it is not the one that the store was opened with."""
        table = self.layout.index(columns)
        if len(table) != self._listed:
            raise StoreError(f"The store at {self.layout.url} has changed since it was opened: open it again.")
        return self._whole(table)

    def _whole(self, table: Any) -> Any:
        """Without the clips of the shards that are left out."""
        return table.filter(pc.invert(pc.is_in(table["shard"], self._without))) if len(self._without) else table

    @property
    def manifest(self) -> Manifest:
        """What the store is made from."""
        return self.layout.manifest

    @property
    def num_frames(self) -> int:
        """Frames of all clips."""
        return int(self.start[-1])

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, index: int) -> ClipRecord:
        """A clip. IndexError past the end; ShardError when its shard is damaged."""
        info = self.info(index)
        reader, row = self.locate(index)
        return record_from_arrays(info.key, info.split, info.text, reader.clip_arrays(row))

    def info(self, index: int) -> ClipInfo:
        """What the index says of a clip."""
        i = self._clip_index(index)
        values = {name: self.clips[name][i].as_py() for name in ("key", "split", "text", "shard", "row", "digest")}
        time = self.time[int(self.start[i]) : int(self.start[i + 1])]
        return ClipInfo(frames=len(time), time=time, **values)

    def frames(self, index: int) -> range:
        """Flat indices of a clip's frames."""
        i = self._clip_index(index)
        return range(int(self.start[i]), int(self.start[i + 1]))

    def clip_of(self, frames: Indices) -> tuple[Array, Array]:
        """Clip i8 [n] and place in the clip i8 [n] of flat frame indices. IndexError for one that is outside."""
        flat = self._inside(frames)
        clip = self._table.clip_of(flat)
        return clip, flat - self.start[clip]

    def shard_of(self, frames: Indices) -> Array:
        """Number i4 [n], in `shards`, of the shard that each frame is in. IndexError for one that is outside."""
        return np.asarray(self._table.shard[self._table.clip_of(self._inside(frames))])

    def locate(self, index: int) -> tuple[ShardReader, int]:
        """The open shard of a clip, and the clip's row in it."""
        i = self._clip_index(index)
        return self._table.reader(i), int(self._table.row[i])

    def batch(
        self, indices: Indices, columns: Sequence[str] = ("tokens", "cells"), *, pin_memory: bool = False
    ) -> FrameBatch:
        """Frames packed into tensors, in the order given.

        Args:
            indices: flat frame indices.
            columns: of `tokens`, `cells`, `points`, `camera`, `rgb`, `state`, `action`, `is_pad`, `extra/NAME`,
                `vision/NAME`, `views/NAME`; `points/NAME` and `camera/NAME` read one array of these, which comes in
                `extra` by that name.
            pin_memory: pack straight into page-locked memory, which goes to a GPU without waiting.

        Raises:
            IndexError: a frame outside of the store. ValueError: an unknown column, or one the store lacks.
        """
        flat = self._inside(indices)
        return assemble(
            TablePlaces(self._table, flat), columns, index=flat, time=self.time[flat], pin_memory=pin_memory
        )

    def places(self, indices: Indices) -> Places:
        """Where frames are; IndexError for one outside of the store."""
        return TablePlaces(self._table, self._inside(indices))

    def language(self) -> LanguageTable | None:
        """The frozen text encoder's outputs of all instructions, read anew; None for a store without an encoder.

        Raises:
            StoreError: the file is missing or damaged, or of another encoder than the manifest names.
        """
        return read_language(self.layout)

    def clouds(self, indices: Indices, *, normalised: bool = False) -> CloudBatch:
        """Points of frames with coordinates, from stored depth and camera: world, or the normalised space."""
        batch = self.batch(indices, columns=("points", "camera", "tokens"))
        return unpack_clouds(batch, width=self.manifest.sizes["W"], normalised=normalised)

    def xyz(self, indices: Indices, *, normalised: bool = False) -> Tensor:
        """Coordinates f4 [B,P,3] of the points of frames, 0 in padding; see `clouds`."""
        return self.clouds(indices, normalised=normalised).xyz

    def pairs(
        self, offset_seconds: float, *, tolerance: float | None = None, jitter: float = 0.0, seed: int = 0
    ) -> PairIndex:
        """Pairs of frames of one clip that many seconds apart, none past the end of a clip; see `find_pairs`.

        `pipeline.store.motion.motion_weights` says how much moves in each.
        """
        return find_pairs(self.time, self.start, offset_seconds, tolerance, jitter=jitter, seed=seed)

    def view(self, columns: Sequence[str] = ("tokens", "cells")) -> FrameView:
        """The frames as a dataset of batches, for a DataLoader."""
        return FrameView(self, tuple(columns))

    def pair_view(self, pairs: PairIndex, columns: Sequence[str] = ("tokens", "cells")) -> PairView:
        """Pairs of frames as a dataset of batches, for a DataLoader."""
        return PairView(self, pairs, tuple(columns))

    def columns(self) -> tuple[str, ...]:
        """The columns that `batch` can give of this store."""
        if len(self) == 0:
            return ()
        found = columns_of(self.locate(0)[0].arrays)
        return found if self.manifest.sizes["P"] else tuple(name for name in found if name != "points")

    def _inside(self, frames: Indices) -> Array:
        flat = _as_indices(frames)
        # negative ones are the greatest when read without their sign
        if len(flat) and flat.view(np.uint64).max() >= self.num_frames:
            raise IndexError(f"frame {flat.min()} or {flat.max()} is outside of the store's {self.num_frames} frames")
        return flat

    def _clip_index(self, index: int) -> int:
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"clip {index} is outside of the store's {len(self)} clips")
        return i


def _check_index(table: Any, shards: Sequence[str], url: str) -> None:
    """StoreError for an index that no store of ours has: rows below 0, no frames, shards that it does not name."""
    if len(table) == 0:
        return
    row, frames = pc.min(table["row"]).as_py(), pc.min(table["frames"]).as_py()
    if row < 0 or frames < 1:
        raise StoreError(_MISCOUNTED.format(url, f"a clip in row {row}, or one of {frames} frames"))
    if unknown := set(shards) - set(index_shards(table)):
        raise StoreError(_MISCOUNTED.format(url, f"a shard {min(unknown)[:80]!r} that it does not name"))


_MISCOUNTED = "The index of the store at {} has {}: `cla merge` writes it anew from the sidecars."


def _as_indices(indices: Indices) -> Array:
    flat = indices.numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
    if flat.ndim != 1 or (flat.size and flat.dtype.kind not in "iu"):
        raise IndexError(f"expected a list of frame numbers, got {flat.dtype} of shape {flat.shape}")
    # its own copy, which the batch holds on to
    return flat.astype(np.int64, copy=isinstance(indices, torch.Tensor | np.ndarray))
