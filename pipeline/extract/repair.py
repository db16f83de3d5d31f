"""`cla repair`: what a store has lost is extracted anew, and nothing else.

Shards are named and filled by the listing and the recipe alone, so that a damaged one can be made again: clips that
are still whole are taken from it, the others go through the models, and the new shard replaces the old by a rename.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_specs.datasets import ClipRef
from data_specs.records import BadClip, ClipRecord
from data_specs.shards import Manifest, Rejected, Sidecar
from pipeline.config import RequestError
from pipeline.devices import choose_device
from pipeline.extract.decoding import decode_ahead
from pipeline.extract.finish import list_store, with_robot_statistics
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import FrozenModels, load_models
from pipeline.extract.partition import clips_per_shard, listing_digest, plan_shards
from pipeline.extract.request import ExtractRequest, recipe_of, whole_option
from pipeline.extract.robot import check_robot
from pipeline.extract.runner import manifest_of
from pipeline.processes import undisturbed
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.store.columns import record_digest, record_from_arrays
from pipeline.store.errors import ShardError, StoreError, StoreRequestError
from pipeline.store.files import StoreFiles
from pipeline.store.index import read_index
from pipeline.store.layout import INDEX, MANIFEST, StoreLayout, manifest_bytes, refuse_other, sidecar_name
from pipeline.store.lock import write_lock
from pipeline.store.shard import open_shard
from pipeline.store.sums import kept_manifest, read_sums
from pipeline.store.verify import Damage, verify
from pipeline.store.writer import ShardWriter

_LISTED = ("limit", "clips_listed", "listing")
"""Options of a manifest's dataset that say what was listed, not what the dataset was asked for."""


@dataclass(kw_only=True)
class RepairSummary:
    """What a repair did. `extracted` clips went through the models, `kept` ones were whole in damaged shards.

    `changed` clips came out otherwise than they were: another machine, or another number of threads. `left` is what
    is still wrong.
    """

    out: str
    damages: list[Damage]
    shards: list[str] = field(default_factory=list)
    extracted: int = 0
    kept: int = 0
    changed: list[str] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "out": self.out,
            "damages": [str(damage) for damage in self.damages],
            "shards": self.shards,
            "extracted": self.extracted,
            "kept": self.kept,
            "changed": self.changed,
            "left": [str(damage) for damage in self.left],
        }

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        if not self.damages:
            yield f"{self.out} is whole: nothing to repair."
            return
        yield f"{self.out}: {len(self.damages)} problems, {len(self.shards)} shards made anew"
        yield f"{self.extracted} clips extracted again, {self.kept} taken from the damaged shards as they were"
        if self.changed:
            yield (
                f"{len(self.changed)} clips came out otherwise than they were, as floating-point sums do on another "
                f"machine or with other threads: {', '.join(self.changed[:3])}"
            )
        for damage in self.left:
            yield f"still wrong: {damage}"


def run_repair(url: str, *, root: Path | None = None, device: str = "auto", workers: int = 1) -> RepairSummary:
    """Make damaged and lost parts of a store anew.

    Args:
        url: the store.
        root: where the dataset's files are now; by default where they were.
        device: as `cla extract` takes it.
        workers: decoding processes; 0 for none.

    Raises:
        StoreRequestError: there is no store, another process writes to it, or it was made with other models, clips or
            settings than can be had now. StoreError: its manifest is lost with its copy, or it cannot be written.
    """
    if not StoreFiles(url).exists(""):
        raise StoreRequestError(f"There is nothing at {url}: expected a store.")
    if StoreFiles(url).is_object_store:
        raise StoreRequestError(f"{url} is an object store, where no shard is replaced: repair a copy in a folder.")
    with write_lock(url):
        layout, damages = _open(url)
        damages += verify(layout)
        summary = RepairSummary(out=url, damages=damages)
        if damages:
            _mend(layout, summary, root, device, workers)
    return summary


def _open(url: str) -> tuple[StoreLayout, list[Damage]]:
    """The store, its manifest put back from its copy where it is damaged."""
    kept = kept_manifest(url)
    try:
        layout = StoreLayout.open(url)
        problem = "is not as it was written" if kept is not None and layout.manifest != kept else ""
    except StoreError as error:
        if kept is None:
            raise
        layout, problem = StoreLayout(url=url, manifest=kept), str(error)
    if kept is not None and not problem:
        files = layout.files
        problem = "" if files.read_bytes(MANIFEST) == manifest_bytes(kept) else "is not as it was written"
    if not problem or kept is None:
        return layout, []
    layout = StoreLayout(url=url, manifest=kept)
    layout.files.write_bytes(MANIFEST, manifest_bytes(kept))
    return layout, [Damage(shard=MANIFEST, array="", problem=problem)]


def _mend(layout: StoreLayout, summary: RepairSummary, root: Path | None, device: str, workers: int) -> None:
    manifest = layout.manifest
    request = _request(manifest, summary.out, root, device, workers)
    source, refs = _clips(request, manifest)
    models = load_models(request.recipe, choose_device(device))
    refuse_other(summary.out, manifest, manifest_of(request, source, refs, models))
    plans = plan_shards(refs, clips_per_shard(request.recipe, models.channels, models.vision_bytes))
    mender = _Mender(layout, source, models, request, {plan.name: plan.refs for plan in plans}, refs, summary)
    damaged = {damage.shard for damage in summary.damages}
    for shard in sorted(damaged & (mender.planned.keys() | mender.rows_of.keys() | set(layout.committed()))):
        mender.mend(shard)
    with undisturbed():
        layout = with_robot_statistics(layout)
        list_store(layout, models.text)
    summary.left = verify(layout)


def _request(manifest: Manifest, out: str, root: Path | None, device: str, workers: int) -> ExtractRequest:
    """What was asked for when the store was made."""
    dataset = manifest.dataset
    where = root if root is not None or dataset.root is None else Path(dataset.root)
    return ExtractRequest(
        dataset=dataset.name,
        root=where,
        split=dataset.split or None,
        options={name: str(value) for name, value in dataset.options.items() if name not in _LISTED},
        limit=whole_option(manifest, "limit", out),
        out=out,
        format=manifest.format,
        recipe=recipe_of(manifest, out),
        workers=workers,
        device=device,
        mode="resume",
    )


def _clips(request: ExtractRequest, manifest: Manifest) -> tuple[Source, Sequence[ClipRef]]:
    try:
        source = open_source(request.dataset, request.root, request.split, request.options)
        refs = source.clips()[: request.limit]
    except ValueError as error:
        raise RequestError(f"{error} A repair needs the dataset that the store was made from (--root).") from None
    if listing_digest(refs) != manifest.dataset.options.get("listing"):
        raise StoreRequestError(
            f"The dataset lists other clips now than when {request.out} was made ({len(refs)} now): give the same "
            "files by --root."
        )
    return source, refs


class _Mender:
    """Makes shards anew."""

    def __init__(
        self,
        layout: StoreLayout,
        source: Source,
        models: FrozenModels,
        request: ExtractRequest,
        planned: Mapping[str, Sequence[ClipRef]],
        refs: Sequence[ClipRef],
        summary: RepairSummary,
    ) -> None:
        self.layout, self.source, self.planned, self.refs, self.summary = layout, source, planned, refs, summary
        self.mapper, self.request = Mapper(request.recipe, models), request
        self.rows_of = self._indexed()
        try:
            self.sums = read_sums(layout)
        except (FileNotFoundError, StoreError):
            self.sums = {}

    def mend(self, shard: str) -> None:
        """Write a shard again, with the clips and rejections that it had, as far as that is known."""
        sidecar = self._trusted(shard)
        digests = {row.key: row.digest for row in sidecar.rows} if sidecar else dict(self.rows_of.get(shard, ()))
        refs = self._refs(shard, sidecar, digests)
        whole = self._whole(shard, digests)
        lost = [ref for ref in refs if ref.key not in whole]
        rejected = {bad.key: bad.reason for bad in sidecar.rejected} if sidecar else {}
        if sidecar:
            lost = [ref for ref in lost if ref.key not in rejected]
        writer = ShardWriter(self.layout, shard)
        decoded = decode_ahead(self.source, lost, self.mapper.recipe.frames, workers=self.request.workers)
        try:
            for ref in refs:
                if ref.key in whole:
                    writer.add(whole[ref.key])
                    self.summary.kept += 1
                elif sidecar and ref.key in rejected:
                    writer.reject(ref.key, rejected[ref.key])
                else:
                    self._extract(writer, next(decoded), digests)
        finally:
            decoded.close()  # type: ignore[attr-defined]
        writer.commit()
        self.summary.shards.append(shard)

    def _extract(self, writer: ShardWriter, decoded: Any, digests: Mapping[str, str]) -> None:
        key, reason = decoded.ref.key, decoded.reason
        if decoded.clip is not None:
            try:
                check_robot(decoded.clip, self.layout.manifest.sizes)
                record = self.mapper(decoded.clip)
            except BadClip as error:
                reason = error.reason
            else:
                writer.add(record)
                self.summary.extracted += 1
                if key in digests and record_digest(record) != digests[key]:
                    self.summary.changed.append(key)
        if reason is None:
            return
        if key in digests:
            raise StoreError(
                f"Clip {key} was good and cannot be read now ({reason}): its shard was left as it is. Bring the file "
                "back, then repair again."
            )
        writer.reject(key, reason)

    def _trusted(self, shard: str) -> Sidecar | None:
        """The sidecar, where it is the one that was committed."""
        import hashlib

        name = sidecar_name(shard)
        try:
            data = self.layout.files.read_bytes(name)
            sidecar = self.layout.sidecar(shard)
        except (FileNotFoundError, ShardError):
            return None
        return sidecar if self.sums.get(name) in (None, hashlib.sha256(data).hexdigest()) else None

    def _indexed(self) -> dict[str, list[tuple[str, str]]]:
        """(key, digest) of the clips of each shard by the index, in order; empty where it cannot be read."""
        try:
            table = read_index(self.layout.files.read_bytes(INDEX))
        except (FileNotFoundError, StoreError):
            return {}
        found: dict[str, list[tuple[str, str]]] = {}
        for row in table.select(["shard", "key", "digest"]).to_pylist():
            found.setdefault(row["shard"], []).append((row["key"], row["digest"]))
        return found

    def _refs(self, shard: str, sidecar: Sidecar | None, digests: Mapping[str, str]) -> Sequence[ClipRef]:
        """The clips of a shard in order: by its sidecar, by the plan, or (of a retry) by the index."""
        rejected: Sequence[Rejected] = sidecar.rejected if sidecar else ()
        if sidecar is None and shard in self.planned:
            return self.planned[shard]
        keys = {*digests, *(bad.key for bad in rejected)}
        found = [ref for ref in self.refs if ref.key in keys]
        if len(found) < len(keys):
            raise StoreRequestError(f"The dataset no longer lists {min(keys - {ref.key for ref in found})} of {shard}.")
        return found

    def _whole(self, shard: str, digests: Mapping[str, str]) -> dict[str, ClipRecord]:
        """The clips that a damaged shard still holds as they were committed."""
        found: dict[str, ClipRecord] = {}
        try:
            reader = open_shard(self.layout.source(shard), shard, self.layout.manifest.format)
        except (ShardError, OSError):
            return found
        rows = list(self.rows_of.get(shard, ())) if self._trusted(shard) is None else []
        sidecar = self._trusted(shard)
        texts = {ref.key: ref for ref in self.refs}
        listed = [(row.key, row.split, row.text) for row in sidecar.rows] if sidecar else []
        listed = listed or [(key, texts[key].split, texts[key].text) for key, _ in rows if key in texts]
        for i, (key, split, text) in enumerate(listed[: len(reader.lengths)]):
            try:
                record = record_from_arrays(key, split, text, reader.clip_arrays(i))
                if record_digest(record) == digests.get(key):
                    found[key] = record
            except (ShardError, KeyError):
                continue
        return found
