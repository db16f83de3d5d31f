"""The store: written a shard at a time by extraction, read by training. See DESIGN and `data_specs.shards`."""

from typing import TYPE_CHECKING

from pipeline.store.errors import ShardError, StoreError, StoreRequestError

if TYPE_CHECKING:
    from pipeline.store.loader import Store
    from pipeline.store.shard_cache import ShardCache

__all__ = ["ShardError", "StoreError", "StoreRequestError", "open_store"]


def open_store(path: str, *, split: str | None = None, cache: "ShardCache | None" = None) -> "Store":
    """Open a store for reading.

    Args:
        path: a folder or any fsspec URL.
        split: only the clips of that split.
        cache: fetch whole shards into this folder first, and read them there; for a store that is far away.

    Returns:
        A map-style dataset of clips (see `Store`).

    Raises:
        StoreRequestError: there is no store, it has another schema version, or no clips in that split.
    """
    from pipeline.store.loader import Store  # brings torch, which `cla --help` must not wait for

    return Store(path, split=split, cache=cache)
