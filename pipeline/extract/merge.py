"""`cla merge`: finishes a store that several partitions wrote, or joins stores that each hold some of the shards."""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_specs.shards import Sidecar
from pipeline.config import ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.finish import list_store, with_robot_statistics
from pipeline.extract.models import TEXT, load_models
from pipeline.extract.request import recipe_of, whole_option
from pipeline.store.errors import ShardError
from pipeline.store.files import SourceIO, StoreFiles
from pipeline.store.index import index_digest
from pipeline.store.language import text_model
from pipeline.store.layout import (
    StoreLayout,
    refuse_other,
    sidecar_bytes,
    sidecar_name,
)
from pipeline.store.lock import write_lock

_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MergeSummary:
    """What the store holds after merging. `missing` listed clips are in no shard, neither stored nor rejected."""

    out: str
    shards: int
    clips: int
    frames: int
    rejected: int
    missing: int
    max_bad_fraction: float
    digest: str

    @property
    def too_many_bad(self) -> bool:
        """Whether more clips were bad than the recipe allows."""
        return self.rejected > self.max_bad_fraction * (self.clips + self.rejected)

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        yield f"{self.out}: {self.shards} shards, {self.clips} clips, {self.frames} frames, {self.rejected} bad clips"
        yield f"content digest {self.digest}"
        if self.missing:
            yield (
                f"{self.missing} of the listed clips are in no shard: run the partitions again that have not ended "
                f"(they go on where they stopped), then cla merge {self.out}"
            )
        if self.too_many_bad:
            yield f"More than max_bad_fraction={self.max_bad_fraction:g} of the clips are bad."


def merge_stores(stores: Sequence[str], out: str | None, device: str = "auto") -> MergeSummary:
    """Write index, rejected clips, instructions and statistics over all shards.

    Args:
        stores: one store, finished where it is; or several that were made from the same, with `out`.
        out: a new store, which gets a copy of every shard; one that an earlier merge began is gone on with.
        device: where the text encoder runs, if the recipe has one.

    Raises:
        RequestError: the stores were made from different things or hold different shards of one name, somebody writes
            to one of them, or there is no `out` for several.
        StoreError: a shard is damaged: it is named, and not copied.
    """
    if out is None:
        if len(stores) != 1:
            raise RequestError(f"{len(stores)} stores become one in a new place: give --out.")
        return _finish(StoreLayout.open(stores[0]), device)
    sources = [StoreLayout.open(store) for store in stores]
    for source in sources[1:]:
        refuse_other(source.url, source.manifest, sources[0].manifest)
    if any(StoreFiles(out).path("") == source.files.path("") for source in sources):
        raise RequestError(f"--out {out} is one of the stores to be merged: name another one.")
    with write_lock(out):
        # statistics are of all shards: they are made anew
        manifest = sources[0].manifest.model_copy(update={"statistics": None})
        target = StoreLayout.create(out, manifest, "resume")
        target.remove_leftovers()
        for source in sources:
            _copy_shards(source, target)
    return _finish(target, device)


def _copy_shards(source: StoreLayout, target: StoreLayout) -> None:
    present = set(target.committed())
    for shard in source.committed():
        sidecar = source.sidecar(shard)
        if shard not in present:
            _copy(source, sidecar, target)
        elif target.sidecar(shard) != sidecar:
            raise RequestError(
                f"Shard {shard} of {source.url} is not the one of another of the stores: they are no partitions of one "
                "extraction, or were run on different machines over the same shards. Leave one of them out."
            )


def _copy(source: StoreLayout, sidecar: Sidecar, target: StoreLayout) -> None:
    shard = sidecar.shard
    if sidecar.file is not None:
        with target.files.new_file(target.data_name(shard)) as path:
            with path.open("wb") as file:
                shutil.copyfileobj(SourceIO(source.source(shard)), file, _PIECE)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sidecar.file.sha256:
                    raise ShardError(shard, None, f"its SHA-256 in {source.url} is not the committed one")
    target.files.write_bytes(sidecar_name(shard), sidecar_bytes(sidecar))


def _finish(layout: StoreLayout, device: str) -> MergeSummary:
    recipe = recipe_of(layout.manifest, layout.url)
    encoder = _encoder(layout, recipe, device)
    with write_lock(layout.url):
        layout.remove_leftovers()
        layout = with_robot_statistics(layout)
        list_store(layout, encoder)
        shards, rejected = len(layout.committed()), len(layout.rejected())
        table = layout.index(("key", "frames", "digest"))
    listed = whole_option(layout.manifest, "clips_listed", layout.url)
    return MergeSummary(
        out=layout.url,
        shards=shards,
        clips=len(table),
        frames=int(table["frames"].to_numpy().sum()),
        rejected=rejected,
        missing=max(0, listed - len(table) - rejected) if listed is not None else 0,
        max_bad_fraction=recipe.max_bad_fraction,
        digest=index_digest(table),
    )


def _encoder(layout: StoreLayout, recipe: ExtractRecipe, device: str) -> TextEncoder | None:
    """The text encoder that the manifest names. RequestError when other weights are found under its name."""
    recorded = text_model(layout)
    if recorded is None:
        return None
    encoder = load_models(recipe, choose_device(device), parts={TEXT}).text
    assert encoder is not None
    if encoder.record != recorded:
        raise RequestError(
            f"text.weights={recipe.text.weights} is not the text encoder of {layout.url} any more (SHA-256 "
            f"{encoder.record.sha256[:12]}…, the manifest says {recorded.sha256[:12]}…): put back the old ones."
        )
    return encoder
