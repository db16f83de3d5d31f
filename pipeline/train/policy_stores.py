"""Several stores as one: clips and frames numbered through, and what must be the same in all of them.

Shape legend: n frames asked for, L tokens of an instruction, D width of the text encoder.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from data_specs.actions import CHUNK_COLUMN, CHUNK_PAD_COLUMN, STEP_NAME
from data_specs.arrays import Array
from data_specs.batches import FrameBatch, LanguageBatch
from data_specs.pointing import POINTING_COLUMN
from data_specs.shards import EXTRA, VIEWS, VISION
from pipeline.config import RequestError
from pipeline.store import StoreError, StoreRequestError, open_store
from pipeline.store.assemble import assemble
from pipeline.store.damaged import open_checked
from pipeline.store.identity import differing_model
from pipeline.store.language import LanguageTable
from pipeline.store.loader import Store
from pipeline.store.places import JoinedPlaces
from pipeline.train_config import DataSection

LANGUAGE_COLUMN = "language"
"""What a policy calls the instructions among its columns; they are a file of the store, not an array of its shards."""


@dataclass(frozen=True, kw_only=True)
class PolicySizes:
    """What a policy is built for: dimensions of `state` and `action` (0: there is none), and channels by column:
    `tokens`, `language`, `vision/NAME`.
    """

    state: int
    action: int
    channels: Mapping[str, int]


class PolicyStores:
    """Stores whose clips and frames are numbered through, in the order given.

    Raises RequestError where a store cannot be opened, or they do not fit together: other dimensions of state or
    action, other frozen models, other sizes.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        _refuse_misfits(self.stores)
        self._first_frame = np.cumsum([0, *(store.num_frames for store in stores)])
        self._first_clip = np.cumsum([0, *(len(store) for store in stores)])
        starts = [store.start[:-1] + first for store, first in zip(stores, self._first_frame, strict=False)]
        self.start: Array = np.concatenate([*starts, self._first_frame[-1:]]).astype(np.int64)
        """i8 [clips+1]: frames of clip i are start[i]:start[i+1]."""
        try:
            self._tables = [store.language() for store in stores]
        except StoreError as error:
            raise RequestError(f"The instructions of a store cannot be read: {error}") from None
        self.keys: list[str] = [key for store in stores for key in store.clips["key"].to_pylist()]
        self.texts: list[str] = [text for store in stores for text in store.clips["text"].to_pylist()]

    @classmethod
    def open(cls, urls: Sequence[str], section: DataSection | None = None) -> "PolicyStores":
        """The stores at some URLs; for training with what its recipe says of damaged shards."""
        if len(set(urls)) < len(urls):
            raise RequestError("A store is named twice: name each once, and say how much of it by --weight.")
        try:
            return cls([open_store(url) if section is None else open_checked(url, section) for url in urls])
        except StoreRequestError as error:
            raise RequestError(str(error)) from None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def named(self) -> str:
        """The stores' URLs, for sentences."""
        return ", ".join(store.layout.url for store in self.stores)

    def store_of(self, clips: Array) -> Array:
        """The number of the store i8 [n] that each clip is in."""
        return np.asarray(np.searchsorted(self._first_clip, clips, side="right") - 1)

    def clips_of_store(self, number: int) -> Array:
        """The clips i8 [n] of a store."""
        return np.arange(self._first_clip[number], self._first_clip[number + 1])

    def in_store(self, clips: Array, number: int) -> Array:
        """Those of some clips that are in a store, as it numbers them itself."""
        return np.asarray(clips[self.store_of(clips) == number] - self._first_clip[number])

    def clip_of(self, frames: Array) -> Array:
        """The clip i8 [n] of each frame."""
        return np.asarray(np.searchsorted(self.start, frames, side="right") - 1)

    def in_stores(self, frames: Array) -> tuple[Array, Array]:
        """The store i8 [n] of each frame, and the frame i8 [n] as that store counts."""
        owner = np.searchsorted(self._first_frame, frames, side="right") - 1
        return owner, frames - self._first_frame[owner]

    def frames_of(self, clips: Array) -> Array:
        """All frames i8 [n] of some clips, clip by clip."""
        parts = [np.arange(self.start[clip], self.start[clip + 1]) for clip in clips]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def frame_rate(self, clip: int) -> float:
        """Frames a second of a clip; 0 of one with a single frame."""
        number = int(self.store_of(np.asarray(clip)))
        begin, end = (int(self.start[i] - self._first_frame[number]) for i in (clip, clip + 1))
        time = self.stores[number].time[begin:end]
        return float((len(time) - 1) / (time[-1] - time[0])) if len(time) > 1 else 0.0

    def array(self, name: str, clip: int) -> Array:
        """A whole array of a clip."""
        store, local = self._local(clip)
        reader, row = store.locate(local)
        return reader.clip_array(name, row)

    def batch(self, frames: Array, columns: Sequence[str]) -> FrameBatch:
        """Frames of any of the stores, packed in the order given; `index` counts through the stores."""
        owners = np.searchsorted(self._first_frame, frames, side="right") - 1
        time, places, positions = np.empty(len(frames)), [], []
        for number in np.unique(owners).tolist():
            store, at = self.stores[number], np.flatnonzero(owners == number)
            local = frames[at] - self._first_frame[number]
            places.append(store.places(local))
            positions.append(at)
            time[at] = store.time[local]
        joined = places[0] if len(places) == 1 else JoinedPlaces(places, positions)
        return assemble(joined, columns, index=frames, time=time)

    def language(self, clips: Array) -> LanguageBatch:
        """The instructions of some clips, in their order; padded to the longest of the stores."""
        owners = self.store_of(clips)
        parts = {
            int(number): self._table(int(number)).batch([self.texts[clip] for clip in clips[owners == number]])
            for number in np.unique(owners)
        }
        if len(parts) == 1:
            return next(iter(parts.values()))
        length = max(part.mask.shape[1] for part in parts.values())
        some = next(iter(parts.values())).feat
        feat = some.new_zeros(len(clips), length, some.shape[-1])
        mask = torch.zeros(len(clips), length, dtype=torch.bool)
        for number, part in parts.items():
            rows = torch.from_numpy(np.flatnonzero(owners == number))
            feat[rows, : part.mask.shape[1]] = part.feat
            mask[rows, : part.mask.shape[1]] = part.mask
        return LanguageBatch(feat=feat, mask=mask)

    def columns(self) -> tuple[str, ...]:
        """The columns that all stores have, `language` among them where they have instructions."""
        found = [set(store.columns()) for store in self.stores]
        for columns, table in zip(found, self._tables, strict=True):
            columns |= set() if table is None else {LANGUAGE_COLUMN}
        return tuple(sorted(set.intersection(*found)))

    @cached_property
    def sizes(self) -> PolicySizes:
        """What a policy for these stores is built for."""
        columns = self.columns()
        sizes = self.stores[0].manifest.sizes
        channels = {"tokens": sizes["C"]}
        if LANGUAGE_COLUMN in columns:
            channels[LANGUAGE_COLUMN] = self._table(0).feat.shape[-1]
        encoders = [name for name in columns if name.startswith(VISION)]
        if encoders:
            for store in self.stores:
                found = store.batch([0], columns=encoders).vision
                widths = {VISION + name: feat.shape[-1] for name, feat in found.items()}
                if any(channels.setdefault(name, width) != width for name, width in widths.items()):
                    raise RequestError(f"The stores {self.named} have outputs of other widths in {', '.join(widths)}.")
        return PolicySizes(state=sizes.get("S", 0), action=sizes.get("A", 0), channels=channels)

    @cached_property
    def chunk(self) -> int:
        """Steps of the shortest chunk of actions of the stores; 0 where one has none."""
        if CHUNK_COLUMN not in self.columns():
            return 0
        return min(store.batch([0], columns=[CHUNK_COLUMN]).extra["action_chunk"].shape[1] for store in self.stores)

    def bad_robot_data(self) -> dict[int, str]:
        """Clips with states or actions that are not finite, each with what is wrong where.

        What the sidecars say decides which shards are looked into: a good store costs nothing.
        """
        found: dict[int, str] = {}
        for number, store in enumerate(self.stores):
            for sidecar in store.layout.sidecars():
                for name in (CHUNK_COLUMN, "state"):
                    if name in sidecar.arrays and sidecar.arrays[name].nonfinite:
                        of_shard = np.flatnonzero(np.array(store.clips["shard"].to_pylist()) == sidecar.shard)
                        for clip in of_shard + self._first_clip[number]:
                            if problem := self._not_finite(int(clip), name):
                                found.setdefault(int(clip), problem)
        return found

    def describe(self) -> dict[str, Any]:
        """For `run.json`: what the stores are made from, so that the frozen models can be run again.

        Of several stores, `url`, `models` and so on are those of the first, `digest` is of all, and `stores` has each.
        """
        each: list[dict[str, Any]] = [
            {
                "url": store.layout.url,
                "digest": store.digest,
                "sizes": dict(store.manifest.sizes),
                "models": [record.model_dump(mode="json") for record in store.manifest.models],
                "geometry": store.manifest.geometry,
                "dataset": store.manifest.dataset.model_dump(mode="json"),
                "recipe": store.manifest.recipe,
            }
            for store in self.stores
        ]
        if len(each) == 1:
            return each[0]
        return {**each[0], "digest": _joint_digest([store.digest for store in self.stores]), "stores": each}

    def _local(self, clip: int) -> tuple[Store, int]:
        number = int(self.store_of(np.asarray(clip)))
        return self.stores[number], int(clip - self._first_clip[number])

    def _table(self, number: int) -> LanguageTable:
        table = self._tables[number]
        assert table is not None, "the columns were checked"
        return table

    def _not_finite(self, clip: int, name: str) -> str | None:
        values = self.array(name, clip)
        bad = np.argwhere(~np.isfinite(values))
        if not len(bad):
            return None
        frame = int(bad[0][0])
        if name != CHUNK_COLUMN:
            return f"its state is not finite at frame {frame}"
        steps = self._local(clip)[0].locate(self._local(clip)[1])[0].arrays
        begin = int(self.array(EXTRA + STEP_NAME, clip)[frame]) if EXTRA + STEP_NAME in steps else None
        at = f"frame {frame}, step {bad[0][1]} of the chunk" if begin is None else f"control step {begin + bad[0][1]}"
        return f"its action is not finite at {at}"


def task_groups(stores: PolicyStores, clips: Array, by: Literal["text", "key"]) -> Array:
    """The task i8 [n] of each clip: clips of one instruction, or whose keys are equal but for their digits."""
    names = [stores.texts[clip] if by == "text" else re.sub(r"\d+", "", stores.keys[clip]) for clip in clips]
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1]


def lacking_columns(
    stores: PolicyStores,
    columns: Sequence[str],
    *,
    chunk: int,
    encoders: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """A sentence for each column that a store lacks, with what makes it: overrides of `cla extract`.

    Args:
        stores: what there is.
        columns: what the model reads.
        chunk: steps of action that it learns, 0 for none.
        encoders: the frozen model that the recipe is made for, by column.
    """
    there = set(stores.columns())
    sentences = [f"{name}: {_remedy(name, encoders)}" for name in columns if name not in there]
    if chunk and CHUNK_PAD_COLUMN not in there:
        sentences.append(f"{CHUNK_COLUMN}: {_remedy(CHUNK_COLUMN, encoders, chunk)}")
    elif chunk > stores.chunk > 0:
        sentences.append(
            f"{CHUNK_COLUMN} of {chunk} steps: the store's chunks have {stores.chunk}; extract with robot.chunk={chunk}"
            f", or train with model.horizon={stores.chunk}"
        )
    return sentences


def _remedy(column: str, encoders: Mapping[str, str], chunk: int = 0) -> str:
    kind, _, name = column.partition("/")
    if column == CHUNK_COLUMN:
        return f"extract a dataset of a robot with robot.chunk={chunk}"
    if column == LANGUAGE_COLUMN:
        return f"extract with text.weights={encoders.get(column, 'NAME')}, or train without (model.language.channels=0)"
    if column == "state":
        return "extract a dataset of a robot, or train a policy without (model.state=0)"
    if column == POINTING_COLUMN:
        return "extract demonstrations with depth (geometry.source=sensor) with robot.pointing=true"
    if column.startswith(VISION):
        made = "vision.vggt=true" if name == "vggt" else f"vision.towers={name}={encoders.get(column, 'WEIGHTS')}"
        return f"extract with {made}"
    if column.startswith(VIEWS):
        return f"extract with dataset.views={name}, where the dataset has such a camera"
    return f"this version of `cla extract` has no {kind} of that name; extract again"


def _joint_digest(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _refuse_misfits(stores: Sequence[Store]) -> None:
    first, *others = stores
    names = {"S": "a state", "A": "an action", "C": "a token", "W": "a frame's side"}
    for other in others:
        for symbol, what in names.items():
            ours, others_size = (store.manifest.sizes.get(symbol, 0) for store in (first, other))
            if ours != others_size:
                raise RequestError(
                    f"{other.layout.url} has {others_size} dimensions of {what} and {first.layout.url} has {ours}: a "
                    "policy is of one robot and one set of features. Train a run on each."
                )
        mine, theirs = ({model.role: model for model in store.manifest.models} for store in (first, other))
        both = mine.keys() & theirs.keys()
        if differs := differing_model([mine[role] for role in both], [theirs[role] for role in both]):
            raise RequestError(
                f"{other.layout.url} was made by another {differs.role} ({differs.theirs}) than {first.layout.url} "
                f"({differs.ours}): extract them with the same weights."
            )
