"""The shards that a process has mapped and opened."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from pipeline.store.files import ByteSource, Sliced
from pipeline.store.layout import StoreLayout
from pipeline.store.shard import FileShard, open_shard
from pipeline.store.shard_cache import CachedFile, ShardCache

MAPPED = 16_384
"""Shards that a process keeps mapped: Linux allows 65,530 mappings."""

OPEN = 1_024
"""Shards of which it keeps what their directory says, some 30 to 80 KB each."""


class OpenShards:
    """Shards by number, opened when first asked for; those that were used least recently are closed.

    Pickled and forked without its handles: every process opens the shards it needs by itself.
    """

    def __init__(self, layout: StoreLayout, names: Sequence[str], cache: ShardCache | None = None) -> None:
        self._layout, self._names, self._cache = layout, names, cache
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._slices: list[Sliced | None] = [None] * len(self._names)
        self._sources: OrderedDict[int, ByteSource] = OrderedDict()
        self._readers: OrderedDict[int, FileShard] = OrderedDict()

    @property
    def lock(self) -> threading.RLock:
        """For whoever learns from the shards; a lock that was held when the process was forked is not waited for."""
        if self._process != os.getpid():  # a remote handle must not be shared either
            self._reset()
        return self._lock

    def reader(self, number: int) -> FileShard:
        """A shard. ShardError when it is missing or damaged."""
        with self.lock:
            if number not in self._readers:
                name = self._names[number]
                self._readers[number] = open_shard(self._source(number), name, self._layout.manifest.format)
            self._readers.move_to_end(number)
            if len(self._readers) > OPEN:
                self._readers.popitem(last=False)
            return self._readers[number]

    def slices(self, numbers: Sequence[int]) -> list[Sliced]:
        """The files of some shards, by slices. ShardError for one that is missing."""
        if self._process == os.getpid():
            known = [self._slices[number] for number in numbers]
            if all(known) and len(self._names) <= MAPPED:
                return known  # type: ignore[return-value]
        with self.lock:
            return [self._source(number).slices for number in numbers]

    def _source(self, number: int) -> ByteSource:
        if number not in self._sources:
            self._sources[number] = self._opened(self._names[number])
            self._slices[number] = self._sources[number].slices
        self._sources.move_to_end(number)
        if len(self._sources) > MAPPED:
            closed, _ = self._sources.popitem(last=False)
            self._slices[closed] = None
        return self._sources[number]

    def _opened(self, name: str) -> ByteSource:
        if self._cache is None:
            return self._layout.source(name)
        source = self._cache.open(self._layout, name)
        # files that have made room take it until they are unmapped
        for number in [n for n, known in self._sources.items() if isinstance(known, CachedFile) and known.gone]:
            del self._sources[number]
            self._slices[number] = None
            self._readers.pop(number, None)
        return source

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self._layout, "names": self._names, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
