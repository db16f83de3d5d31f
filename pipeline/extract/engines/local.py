"""Shards written by this process: decoding, inference and writing overlap."""

import time
from collections.abc import Sequence

from data_specs.shards import Sidecar
from pipeline.devices import choose_device
from pipeline.extract.decoding import decode_ahead
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.engines.base import ModelFacts
from pipeline.extract.mapper import Mapper
from pipeline.extract.mapping import map_clips
from pipeline.extract.models import FrozenModels, load_models
from pipeline.extract.partition import ShardPlan
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.request import ExtractRequest
from pipeline.extract.writing import WriterThread
from pipeline.sources.base import Source
from pipeline.store.layout import StoreLayout


class LocalEngine:
    """The models in this process, and `request.workers` decoding processes."""

    def __init__(self, request: ExtractRequest, source: Source) -> None:
        self.models: FrozenModels = load_models(request.recipe, choose_device(request.device))
        self._request, self._source = request, source

    @property
    def facts(self) -> ModelFacts:
        """What a manifest says of the models."""
        return ModelFacts.of(self.models)

    def text_encoder(self) -> TextEncoder | None:
        """The recipe's, if it has one."""
        return self.models.text

    def write(self, plans: Sequence[ShardPlan], layout: StoreLayout, tally: Tally, report: Reporter) -> None:
        """Extract and commit these shards."""
        mapper = Mapper(self._request.recipe, self.models)
        workers = self._request.workers
        write_shards(plans, self._source, mapper, layout, workers=workers, tally=tally, report=report)

    def close(self) -> None:
        """Nothing is left running."""


def write_shards(
    plans: Sequence[ShardPlan],
    source: Source,
    mapper: Mapper,
    layout: StoreLayout,
    *,
    workers: int,
    tally: Tally,
    report: Reporter,
) -> None:
    """Extract and commit these shards, in order, with `workers` decoding processes. Counts in `tally`, shows it."""
    start = time.perf_counter()
    total = sum(len(plan.refs) for plan in plans)
    shard_of = [plan.name for plan in plans for _ in plan.refs]
    ends = {plan.name: plan.refs[-1].key for plan in plans}

    def committed(sidecar: Sidecar) -> None:
        tally.shards += 1
        tally.bytes += sidecar.file.bytes if sidecar.file else 0

    refs = [ref for plan in plans for ref in plan.refs]
    clips = mapper.recipe.batch.clips
    ahead = max(2 * clips, 2 * workers + 1) if clips > 1 else None
    decoded = decode_ahead(source, refs, mapper.recipe.frames, workers=workers, ahead=ahead)
    batches = [size for plan in plans for size in plan.batches(clips)]
    mapped_clips = map_clips(mapper, decoded, batches, layout.manifest.sizes)
    inferred = mapper.seconds()
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
            tally.infer_s = mapper.seconds() - inferred
            if mapped.ref.key == ends[shard]:
                writer.finish(shard)
            tally.wall_s, tally.write_s = time.perf_counter() - start, writer.seconds
            report.update(tally, total)
        writer.wait()
    tally.wall_s, tally.write_s = time.perf_counter() - start, writer.seconds
    report.update(tally, total)
