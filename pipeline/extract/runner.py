"""`cla extract`: a dataset through the frozen models into a store, by whichever engine."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from data_specs.datasets import ClipRef
from data_specs.shards import DatasetRecord, Manifest, Sidecar
from pipeline.config import RequestError
from pipeline.extract.engines.base import Engine, ModelFacts
from pipeline.extract.engines.local import LocalEngine
from pipeline.extract.finish import list_store, statistics_of, with_robot_statistics
from pipeline.extract.geometry import WORLDS
from pipeline.extract.models import FrozenModels
from pipeline.extract.partition import ShardPlan, clips_per_shard, listing_digest, plan_shards
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.request import ExtractRequest, ExtractSummary
from pipeline.processes import undisturbed
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.store.errors import StoreRequestError
from pipeline.store.files import StoreFiles
from pipeline.store.layout import MANIFEST, StoreLayout, current_rejections, refuse_existing, refuse_other
from pipeline.store.lock import refuse_busy, write_lock

__all__ = ["ExtractRequest", "ExtractSummary", "manifest_of", "run_extract"]


def run_extract(request: ExtractRequest, report: Reporter) -> ExtractSummary:
    """Extract the clips that are not committed yet, or those of the request's partition.

    Raises RequestError for what is wrong with the request and FailedError for what fails; KeyboardInterrupt leaves a
    store that `--resume` goes on with.
    """
    source, refs = _list_clips(request)
    _refuse_early(request, _dataset_record(request, source, refs))
    engine = _start(request, source)
    try:
        with write_lock(request.out, request.part):
            layout, summary = _extract(request, source, refs, engine, report)
        if request.partition is None or summary.open_shards:
            return summary
        return _finish_together(request, layout, engine, summary)
    finally:
        engine.close()


def _start(request: ExtractRequest, source: Source) -> Engine:
    if request.engine == "local":
        return LocalEngine(request, source)
    from pipeline.extract.engines.ray import RayEngine

    return RayEngine(request, source)


def _extract(
    request: ExtractRequest, source: Source, refs: Sequence[ClipRef], engine: Engine, report: Reporter
) -> tuple[StoreLayout, ExtractSummary]:
    facts, partition = engine.facts, request.partition
    mode = request.mode if partition is None else "join"
    manifest, cut = manifest_of(request, source, refs, facts), 0
    statistics: dict[str, Any] = {}
    # an interrupt before the store is begun leaves nothing; after it, a store that can be read as it is
    with undisturbed() as guard:
        layout = StoreLayout.create(request.out, manifest, mode)
        try:
            with guard.lifted():
                every = plan_shards(refs, clips_per_shard(request.recipe, facts.channels, facts.vision_bytes))
                mine = every if partition is None else partition.plans(every)
                layout.remove_leftovers(None if partition is None else {plan.name for plan in mine})
                plans = _open_plans(layout, mine, refs, request)
                tally = Tally(skipped_clips=sum(len(sidecar.rows) for sidecar in _sidecars(layout, mine, request)))
                engine.write(plans, layout, tally, report)
                statistics = {} if partition else statistics_of(layout)
            if statistics:
                layout = layout.with_statistics(statistics)
        finally:
            if partition is None:
                cut = list_store(layout, engine.text_encoder())
    left = set() if partition is None else {plan.name for plan in every} - set(layout.committed())
    return layout, _summary(layout, mine, request, tally, facts, truncated=cut, open_shards=len(left))


def _finish_together(
    request: ExtractRequest, layout: StoreLayout, engine: Engine, summary: ExtractSummary
) -> ExtractSummary:
    """Finish the store, when this partition was the last one: who comes last has it alone."""
    try:
        with write_lock(request.out):
            with undisturbed():
                layout = with_robot_statistics(layout)
                cut = list_store(layout, engine.text_encoder())
            whole = replace(request, partition=None)
            done = _summary(layout, (), whole, summary.tally, engine.facts, truncated=cut, open_shards=0)
            return replace(done, partition=request.partition)
    except StoreRequestError:
        return summary  # another one is about to end, and does it


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
    refuse_busy(request.out, request.part)
    if request.partition is not None and request.mode == "overwrite":
        raise RequestError(
            "--overwrite removes what other partitions write: remove the store first, then start all of them."
        )
    if request.partition is not None and request.retry_rejected:
        raise RequestError("--retry-rejected goes over the whole store: after all partitions, without --partition.")
    joins = request.partition is not None and StoreFiles(request.out).exists(MANIFEST)
    if request.mode == "new" and request.partition is None:
        refuse_existing(request.out)
    elif joins or (request.mode == "resume" and request.partition is None):
        old = StoreLayout.open(request.out).manifest
        asked = {"recipe": request.recipe.recorded(), "dataset": dataset, "format": request.format}
        refuse_other(request.out, old, old.model_copy(update=asked))


def manifest_of(
    request: ExtractRequest, source: Source, refs: Sequence[ClipRef], models: FrozenModels | ModelFacts
) -> Manifest:
    """What the store of a request is made from."""
    recipe = request.recipe
    sizes = {"C": models.channels, "P": recipe.points.count if recipe.store.points else 0, "W": recipe.frames.size}
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
    layout: StoreLayout, mine: Sequence[ShardPlan], refs: Sequence[ClipRef], request: ExtractRequest
) -> list[ShardPlan]:
    """The shards that are still to be written; with --retry-rejected also new ones for the clips that were bad."""
    committed = set(layout.committed())
    plans = [plan for plan in mine if plan.name not in committed]
    if request.retry_rejected:
        bad = {rejected.key for rejected in layout.rejected()}
        again = [ref for ref in refs if ref.key in bad]
        attempt = 1 + sum(name.startswith("retry-") and name.endswith("-000000") for name in committed)
        # "r" sorts after the digits: a retry's shards are read after the others
        plans += plan_shards(again, max(len(plan.refs) for plan in mine), prefix=f"retry-{attempt:03d}-")
    return plans


def _sidecars(layout: StoreLayout, mine: Sequence[ShardPlan], request: ExtractRequest) -> Iterator[Sidecar]:
    """The committed shards that a summary is about: all, or those of a partition."""
    if request.partition is None:
        return layout.sidecars()
    return layout.sidecars(sorted({plan.name for plan in mine} & set(layout.committed())))


def _summary(
    layout: StoreLayout,
    mine: Sequence[ShardPlan],
    request: ExtractRequest,
    tally: Tally,
    models: ModelFacts,
    *,
    truncated: int,
    open_shards: int,
) -> ExtractSummary:
    clips = frames = size = 0

    def counted() -> Iterator[Sidecar]:
        nonlocal clips, frames, size
        for sidecar in _sidecars(layout, mine, request):
            clips, frames = clips + len(sidecar.rows), frames + sum(row.frames for row in sidecar.rows)
            size += sidecar.file.bytes if sidecar.file else 0
            yield sidecar

    rejected = tuple((bad.key, bad.reason) for bad in current_rejections(counted()))
    return ExtractSummary(
        out=request.out,
        tally=tally,
        clips=clips,
        frames=frames,
        bytes=size,
        rejected=rejected,
        max_bad_fraction=request.recipe.max_bad_fraction,
        random_models=tuple(f"{record.role} ({record.name})" for record in models.records if record.random),
        truncated=truncated,
        partition=request.partition,
        open_shards=open_shards,
        finished=request.partition is None,
    )
