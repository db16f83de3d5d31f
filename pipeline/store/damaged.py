"""Which shards of a store must not be learned from: looked for before training, so that what is left out is known."""

import sys
from concurrent.futures import ThreadPoolExecutor

from pipeline.store.errors import ShardError, StoreError
from pipeline.store.index import index_shards, read_index
from pipeline.store.layout import INDEX, MANIFEST, REJECTED, SHARDS, SUMS, StoreLayout, sidecar_name
from pipeline.store.loader import Store
from pipeline.store.sums import sum_problems
from pipeline.store.verify import file_problems
from pipeline.train_config import DataSection

_SHOWN = 3


def open_checked(url: str, section: DataSection) -> Store:
    """A store for training, without the damaged shards where the recipe says so.

    Shards that will be fetched whole are compared with their SHA-256 when they arrive, not here, unless damaged ones
    are to be left out, which must be known before.

    Says on stderr what is left out: the shards by name, and how many clips.

    Raises:
        StoreError: a shard is damaged and `section.damaged` is `stop`, or the manifest or the index is.
        StoreRequestError: there is no store.
    """
    layout = StoreLayout.open(url)
    compared_later = section.order == "shards" and section.damaged == "stop" and not layout.files.is_local
    damaged = damaged_shards(layout, sums=section.check == "sums" and not compared_later)
    if not damaged:
        return Store(url)
    named = "; ".join(f"{shard}: {problem}" for shard, problem in list(damaged.items())[:_SHOWN])
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    if section.damaged == "stop":
        raise StoreError(
            f"{len(damaged)} shards of {url} are damaged ({named}{more}): `cla repair {url}` mends them, "
            "data.damaged=skip trains without them."
        )
    store = Store(url, without=damaged)
    lost = f"{store.left_out} clips" if store.left_out else "no clip that the index still lists"
    sys.stderr.write(f"warning: {url} without {len(damaged)} damaged shards, {lost} ({named}{more})\n")
    return store


def damaged_shards(layout: StoreLayout, *, sums: bool, threads: int = 4) -> dict[str, str]:
    """What is wrong with each damaged or lost shard, by name.

    Args:
        layout: the store.
        sums: compare the SHA-256 of every data file, which reads all of the store; else their sizes.
        threads: data files that are read at a time.

    Raises:
        StoreError: the manifest or the index is not as it was written.
    """
    damaged: dict[str, str] = {}
    committed = layout.committed()
    for name, problem in sum_problems(layout):
        if name in (MANIFEST, INDEX) and "is not listed" not in problem:
            raise StoreError(f"{name} of {layout.url}: {problem}. `cla repair {layout.url}` mends it.")
        shard = name.removeprefix(f"{SHARDS}/").removesuffix(".json")
        if name == sidecar_name(shard) and name not in (REJECTED, SUMS) and "is not listed" not in problem:
            damaged[shard] = f"its sidecar {problem}"
    try:
        listed = index_shards(read_index(layout.files.read_bytes(INDEX), ("row",)))
    except (FileNotFoundError, StoreError):
        listed = []
    for shard in sorted(set(listed) - set(committed)):
        damaged.setdefault(shard, "its sidecar is missing")

    def look(shard: str) -> str:
        try:
            sidecar = layout.sidecar(shard)
            if sidecar.file is None:
                return ""
            found = file_problems(sidecar, layout.source(shard), sums=sums)
            return next((damage.problem for damage in found), "")
        except ShardError as error:
            return error.problem

    with ThreadPoolExecutor(threads) as pool:
        for shard, problem in zip(committed, pool.map(look, committed), strict=True):
            if problem:
                damaged.setdefault(shard, problem)
    return dict(sorted(damaged.items()))
