"""`cla extract`: a dataset through the frozen models into a store. Decoding, inference and writing overlap."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_specs.actions import ACTION_PATH_NAME
from data_specs.datasets import ClipRef
from data_specs.shards import EXTRA, DatasetRecord, Format, Manifest, Sidecar
from pipeline.config import ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.decoding import decode_ahead
from pipeline.extract.geometry import WORLDS
from pipeline.extract.language import store_language
from pipeline.extract.mapper import Mapper
from pipeline.extract.mapping import map_clips
from pipeline.extract.models import FrozenModels, load_models
from pipeline.extract.partition import ShardPlan, clips_per_shard, listing_digest, plan_shards
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.statistics import robot_statistics
from pipeline.extract.writing import WriterThread
from pipeline.processes import undisturbed
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.store.layout import StoreLayout, refuse_existing, refuse_other
from pipeline.store.lock import refuse_busy, write_lock
from pipeline.store.sums import write_sums

MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What the user asked for. `recipe` decides what is written; the rest where, how, and over which clips."""

    dataset: str
    root: Path | None
    split: str | None
    options: dict[str, str]
    limit: int | None
    out: str
    format: Format
    recipe: ExtractRecipe
    workers: int = 1
    device: str = "auto"
    mode: Literal["new", "resume", "overwrite"] = "new"
    retry_rejected: bool = False


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run did (`tally`) and what the store holds after it; `truncated` distinct instructions were too long."""

    out: str
    tally: Tally
    clips: int
    frames: int
    bytes: int
    rejected: tuple[tuple[str, str], ...]
    max_bad_fraction: float
    random_models: tuple[str, ...]
    truncated: int = 0

    @property
    def bad_fraction(self) -> float:
        """Share of the listed clips that are bad."""
        total = self.clips + len(self.rejected)
        return len(self.rejected) / total if total else 0.0

    @property
    def too_many_bad(self) -> bool:
        """Whether more clips were bad than the recipe allows."""
        return self.bad_fraction > self.max_bad_fraction

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "out": self.out,
            "clips": self.clips,
            "frames": self.frames,
            "bytes": self.bytes,
            "rejected": [{"key": key, "reason": reason} for key, reason in self.rejected],
            "bad_fraction": self.bad_fraction,
            "random_weights": list(self.random_models),
            "truncated_instructions": self.truncated,
            "run": {**asdict(self.tally), "frames_per_s": self.tally.frames_per_s},
        }

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        tally = self.tally
        yield f"{self.out}: {self.clips} clips, {self.frames} frames, {self.bytes / 1e6:.1f} MB"
        yield (
            f"this run: {tally.clips} clips, {tally.frames} frames in {tally.wall_s:.1f} s "
            f"({tally.frames_per_s:.2f} frames/s); read {tally.read_s:.1f} s, infer {tally.infer_s:.1f} s, "
            f"write {tally.write_s:.1f} s, overlapping"
        )
        if tally.skipped_clips:
            yield f"{tally.skipped_clips} clips were in committed shards already"
        if self.random_models:
            yield f"RANDOM weights: {', '.join(self.random_models)}. The features are not those of a trained model."
        if self.truncated:
            yield f"{self.truncated} distinct instructions were longer than text.tokens and are cut there"
        if self.rejected:
            yield f"{len(self.rejected)} bad clips ({self.bad_fraction:.1%}), see rejected.jsonl:"
            for key, reason in self.rejected[:MOST_SHOWN]:
                yield f"  {key}: {reason}"
            if len(self.rejected) > MOST_SHOWN:
                yield f"  and {len(self.rejected) - MOST_SHOWN} more"
        if self.too_many_bad:
            yield f"More than max_bad_fraction={self.max_bad_fraction:g} of the clips are bad."
        yield f"next: cla inspect-shards {self.out} --verify --html page.html"


def run_extract(request: ExtractRequest, report: Reporter) -> ExtractSummary:
    """Extract the clips that are not committed yet.

    Raises RequestError for what is wrong with the request and FailedError for what fails; KeyboardInterrupt leaves a
    store that `--resume` goes on with.
    """
    recipe = request.recipe
    source, refs = _list_clips(request)
    _refuse_early(request, _dataset_record(request, source, refs))
    models = load_models(recipe, choose_device(request.device))
    with write_lock(request.out):
        return _extract(request, source, refs, models, report)


def _extract(
    request: ExtractRequest, source: Source, refs: Sequence[ClipRef], models: FrozenModels, report: Reporter
) -> ExtractSummary:
    recipe = request.recipe
    layout = StoreLayout.create(request.out, manifest_of(request, source, refs, models), request.mode)
    layout.remove_leftovers()
    per_shard = clips_per_shard(recipe, models.channels, models.vision_bytes)
    plans = _open_plans(layout, refs, per_shard, request)
    tally = Tally(skipped_clips=len(layout.done_keys()))
    try:
        _run(plans, source, Mapper(recipe, models), layout, request, tally, report)
        layout = with_robot_statistics(layout)
    finally:
        # also after Ctrl-C: what is committed is listed, and the store can be read as it is
        with undisturbed():
            cut = list_store(layout, models)
    return _summary(layout, request, tally, models, cut)


def with_robot_statistics(layout: StoreLayout) -> StoreLayout:
    """Put the statistics of robot data, where there is any, into the manifest."""
    robot = {"state", "action", EXTRA + ACTION_PATH_NAME}
    if any(robot & sidecar.arrays.keys() for sidecar in layout.sidecars()):
        return layout.with_statistics(robot_statistics(layout.url))
    return layout


def list_store(layout: StoreLayout, models: FrozenModels) -> int:
    """Write what a store has beside its shards; how many distinct instructions were too long for the text encoder."""
    layout.write_index()
    layout.write_rejected()
    cut = store_language(layout, models.text)
    write_sums(layout)
    return cut


def _list_clips(request: ExtractRequest) -> tuple[Source, Sequence[ClipRef]]:
    try:
        source = open_source(request.dataset, request.root, request.split, request.options)
        if request.recipe.robot.chunk and not source.spec.action_dim:
            raise RequestError(
                f"robot.chunk={request.recipe.robot.chunk} needs actions, and dataset {request.dataset} has none: give "
                "robot.chunk=0, or a dataset of a robot."
            )
        if request.recipe.robot.pointing and (source.spec.state_dim or 0) < 3:
            raise RequestError(
                f"robot.pointing=true needs states that begin with the grip point, and dataset {request.dataset} has "
                "none: give robot.pointing=false, or a dataset of a robot."
            )
        refs = source.clips()
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not refs:
        where = f" under {request.root}" if request.root else ""
        raise RequestError(f"Dataset {request.dataset} has no clips{where}: nothing to extract.")
    return source, refs[: request.limit]


def _dataset_record(request: ExtractRequest, source: Source, refs: Sequence[ClipRef]) -> DatasetRecord:
    return DatasetRecord(
        name=request.dataset,
        spec=asdict(source.spec),
        root=None if request.root is None else str(request.root),
        split=request.split or "",
        options={**request.options, "limit": request.limit, "clips_listed": len(refs), "listing": listing_digest(refs)},
    )


def _refuse_early(request: ExtractRequest, dataset: DatasetRecord) -> None:
    """Answer a request that cannot be met before gigabytes of weights are loaded for it."""
    refuse_busy(request.out)
    if request.mode == "new":
        refuse_existing(request.out)
    elif request.mode == "resume":
        old = StoreLayout.open(request.out).manifest
        asked = {"recipe": request.recipe.recorded(), "dataset": dataset, "format": request.format}
        refuse_other(request.out, old, old.model_copy(update=asked))


def manifest_of(request: ExtractRequest, source: Source, refs: Sequence[ClipRef], models: FrozenModels) -> Manifest:
    """What the store of a request is made from."""
    recipe = request.recipe
    sizes = {"C": models.channels, "P": recipe.points.count, "W": recipe.frames.size}
    if source.spec.state_dim:
        sizes["S"] = source.spec.state_dim
    if source.spec.action_dim:
        sizes["A"] = source.spec.action_dim
    return Manifest(
        format=request.format,
        dataset=_dataset_record(request, source, refs),
        models=models.records,
        recipe=recipe.recorded(),
        seed=recipe.seed,
        geometry={"source": recipe.geometry.source, "world": WORLDS[recipe.geometry.source]},
        sizes=sizes,
    )


def _open_plans(
    layout: StoreLayout, refs: Sequence[ClipRef], per_shard: int, request: ExtractRequest
) -> list[ShardPlan]:
    """The shards that are still to be written; with --retry-rejected also new ones for the clips that were bad."""
    sidecars = {sidecar.shard: sidecar for sidecar in layout.sidecars()}
    plans = [plan for plan in plan_shards(refs, per_shard) if plan.name not in sidecars]
    if request.retry_rejected:
        bad = {rejected.key for rejected in layout.rejected()}
        again = [ref for ref in refs if ref.key in bad]
        attempt = 1 + sum(name.startswith("retry-") and name.endswith("-000000") for name in sidecars)
        # "r" sorts after the digits: a retry's shards are read after the others
        plans += plan_shards(again, per_shard, prefix=f"retry-{attempt:03d}-")
    return plans


def _run(
    plans: list[ShardPlan],
    source: Source,
    mapper: Mapper,
    layout: StoreLayout,
    request: ExtractRequest,
    tally: Tally,
    report: Reporter,
) -> None:
    start = time.perf_counter()
    total = sum(len(plan.refs) for plan in plans)
    shard_of = [plan.name for plan in plans for _ in plan.refs]
    ends = {plan.name: plan.refs[-1].key for plan in plans}

    def committed(sidecar: Sidecar) -> None:
        tally.shards += 1
        tally.bytes += sidecar.file.bytes if sidecar.file else 0

    refs = [ref for plan in plans for ref in plan.refs]
    clips = mapper.recipe.batch.clips
    ahead = max(2 * clips, 2 * request.workers + 1) if clips > 1 else None
    decoded = decode_ahead(source, refs, mapper.recipe.frames, workers=request.workers, ahead=ahead)
    batches = [size for plan in plans for size in plan.batches(clips)]
    mapped_clips = map_clips(mapper, decoded, batches, layout.manifest.sizes)
    with WriterThread(layout, committed) as writer:
        for shard, mapped in zip(shard_of, mapped_clips, strict=True):
            tally.read_s += mapped.seconds
            if mapped.record is not None:
                writer.add(shard, mapped.record)
                tally.clips += 1
                tally.frames += len(mapped.record)
            if mapped.reason is not None:
                writer.reject(shard, mapped.ref.key, mapped.reason)
                tally.rejected += 1
            tally.infer_s = mapper.seconds()
            if mapped.ref.key == ends[shard]:
                writer.finish(shard)
            tally.wall_s, tally.write_s = time.perf_counter() - start, writer.seconds
            report.update(tally, total)
    tally.wall_s, tally.write_s = time.perf_counter() - start, writer.seconds
    report.update(tally, total)


def _summary(
    layout: StoreLayout, request: ExtractRequest, tally: Tally, models: FrozenModels, truncated: int
) -> ExtractSummary:
    sidecars = layout.sidecars()
    return ExtractSummary(
        out=request.out,
        tally=tally,
        clips=sum(len(sidecar.rows) for sidecar in sidecars),
        frames=sum(row.frames for sidecar in sidecars for row in sidecar.rows),
        bytes=sum(sidecar.file.bytes for sidecar in sidecars if sidecar.file),
        rejected=tuple((bad.key, bad.reason) for bad in layout.rejected()),
        max_bad_fraction=request.recipe.max_bad_fraction,
        random_models=tuple(f"{record.role} ({record.name})" for record in models.records if record.random),
        truncated=truncated,
    )
