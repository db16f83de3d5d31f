"""`cla plan`: from counts and a probe to hours, terabytes and workers, with where each number comes from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_specs.shards import Format
from pipeline.config import ExtractRecipe, RequestError
from pipeline.plan.counts import KNOWN, Counts, known_counts, sampled_counts
from pipeline.plan.probe import Probe, generated_clip, run_probe
from pipeline.plan.sizes import typical_bytes
from pipeline.sources import open_source

DENSE_CLOUD = 12
"""Bytes of a point's float32 coordinates."""

TYPICAL_TOKENS = 160


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is to be extracted, and how it is to be foreseen.

    `frames_per_s` is a rate that is known already: then nothing runs. `tokens` is N', where it is known better.
    `seconds` may be spent on measuring, `sample` clips decoded to count frames. `deadline` in hours.
    """

    dataset: str
    root: Path | None
    split: str | None
    options: dict[str, str]
    limit: int | None
    recipe: ExtractRecipe
    form: Format = "zarr"
    device: str = "auto"
    deadline: float | None = None
    frames_per_s: float | None = None
    tokens: float | None = None
    seconds: float = 60.0
    sample: int = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer. Bytes are a frame, by array; `probe` is None where a given rate stood for it."""

    request: PlanRequest
    counts: Counts
    frames_per_s: float
    device: str
    bytes_a_frame: dict[str, float]
    bytes_source: str
    tokens: float
    channels: int
    probe: Probe | None

    @property
    def bytes(self) -> float:
        """Of all frames."""
        return self.counts.frames * sum(self.bytes_a_frame.values())

    @property
    def dense_bytes(self) -> float:
        """Of all frames, with a float16 feature and float32 coordinates for every point."""
        return float(self.counts.frames * self.request.recipe.points.count * (2 * self.channels + DENSE_CLOUD))

    @property
    def device_hours(self) -> float:
        """Hours of one device."""
        return self.counts.frames / self.frames_per_s / 3600

    @property
    def workers(self) -> int | None:
        """Devices that finish by the deadline, without any margin; None without a deadline."""
        deadline = self.request.deadline
        return None if deadline is None else max(1, math.ceil(self.device_hours / deadline))

    @property
    def decoders(self) -> int | None:
        """Decoding processes that keep one device busy; None where decoding was not measured."""
        read = self.counts.read_s
        return None if read is None else max(1, math.ceil(read * self.frames_per_s))

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        request, counts, probe = self.request, self.counts, self.probe
        return {
            "dataset": request.dataset,
            "split": request.split,
            "recipe": request.recipe.model_dump(mode="json"),
            "format": request.form,
            "clips": counts.clips,
            "clips_source": counts.source,
            "bad_fraction": counts.bad_fraction,
            "frames_per_clip": counts.frames_per_clip,
            "frames_per_clip_error": counts.spread,
            "frames": counts.frames,
            "tokens_per_frame": self.tokens,
            "bytes_per_frame": sum(self.bytes_a_frame.values()),
            "bytes_per_frame_by_array": self.bytes_a_frame,
            "bytes_source": self.bytes_source,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "device": self.device,
            "frames_per_s": self.frames_per_s,
            "frames_per_s_measured": probe is not None,
            "probe_frames": None if probe is None else probe.frames,
            "probe_clips": None if probe is None else probe.clips,
            "random_weights": [] if probe is None else list(probe.random_models),
            "device_hours": self.device_hours,
            "deadline_hours": request.deadline,
            "workers": self.workers,
            "decoding_s_per_frame": counts.read_s,
            "decoding_processes_per_worker": self.decoders,
        }

    def lines(self) -> Iterator[str]:
        """The plan as a person reads it."""
        request, counts, probe = self.request, self.counts, self.probe
        error = f" ± {2 * counts.spread:.1f}" if counts.spread else ""
        split = f" ({request.split})" if request.split else ""
        yield f"{request.dataset}{split}, recipe {request.recipe.name}"
        yield f"  clips         {counts.clips:,} ({counts.source})"
        if counts.bad_fraction:
            yield f"                {counts.bad_fraction:.0%} of the clips tried were bad, and are left out"
        yield f"  frames        {counts.frames:,} ({counts.frames_per_clip:.1f}{error} a clip)"
        ratio = self.dense_bytes / self.bytes if self.bytes else math.nan
        dense = f"dense would be {_size(self.dense_bytes)}, {ratio:.0f} times as much"
        yield f"  bytes         {_size(self.bytes)} as {request.form}; {dense}"
        total = sum(self.bytes_a_frame.values())
        yield f"                {total:,.0f} a frame ({self.bytes_source}):"
        for family, size in _families(self.bytes_a_frame):
            yield f"                {size:10,.0f}  {_size(size * counts.frames):>9}  {family}"
        measured = "given" if probe is None else f"measured on {_batches(probe)}"
        yield f"  rate          {self.frames_per_s:.3g} frames/s on {self.device} ({measured})"
        if probe is not None and probe.random_models:
            yield f"                RANDOM weights: {', '.join(probe.random_models)}: the rate holds, N' may not"
        if probe is not None and probe.frames < round(counts.frames_per_clip):
            yield "                clips have more frames; frames lifted together cost more the more there are"
        if probe is not None and probe.clips < request.recipe.batch.clips:
            yield f"                the recipe's batches have {request.recipe.batch.clips}: give more --probe-seconds"
        yield f"  device-hours  {self.device_hours:,.1f}"
        if self.workers is not None:
            plural = "workers" if self.workers > 1 else "worker"
            yield f"  deadline      {request.deadline:g} h: {self.workers} {plural}, a device each, without any margin"
        if self.decoders is not None:
            yield f"  decoding      {counts.read_s:.3f} s a frame: --workers {self.decoders} keep one device busy"


def make_plan(request: PlanRequest) -> Plan:
    """Foresee an extraction. Raises RequestError for what is wrong with the request."""
    recipe = request.recipe
    counts = _counts(request)
    frames = max(1, round(counts.frames_per_clip))
    if request.frames_per_s is not None:
        tokens, channels = request.tokens or TYPICAL_TOKENS, _channels(recipe)
        return Plan(
            request=request,
            counts=counts,
            frames_per_s=request.frames_per_s,
            device="a device",
            bytes_a_frame=typical_bytes(
                recipe, tokens=tokens, channels=channels, vision=_vision(recipe), form=request.form
            ),
            bytes_source=f"typical figures, N' {tokens:g}{'' if request.tokens else ' assumed'}; nothing was run",
            tokens=tokens,
            channels=channels,
            probe=None,
        )
    clip = counts.sample
    if clip is None:
        clip = generated_clip(recipe, frames)
    probe = run_probe(recipe, clip, form=request.form, device=request.device, seconds=request.seconds)
    where = "a generated clip" if counts.sample is None else f"clip {clip.key}"
    sizes, source, tokens = probe.bytes, f"as {where} was stored, N' {probe.tokens:.0f}", probe.tokens
    if request.tokens is not None:
        tokens, source = request.tokens, f"as {where} was stored, N' {probe.tokens:.0f} scaled to {request.tokens:g}"
        scale = tokens / probe.tokens
        sizes = {name: size * (scale if name.startswith(("tokens/", "cells/")) else 1) for name, size in sizes.items()}
    return Plan(
        request=request,
        counts=replace(counts, sample=None),
        frames_per_s=probe.frames_per_s,
        device=probe.device,
        bytes_a_frame=sizes,
        bytes_source=source,
        tokens=tokens,
        channels=_channels(recipe),
        probe=probe,
    )


def _counts(request: PlanRequest) -> Counts:
    sampling = request.recipe.frames
    if request.root is None and request.dataset in KNOWN:
        return known_counts(request.dataset, request.split, sampling, request.limit)
    try:
        source = open_source(request.dataset, request.root, request.split, request.options)
        refs = source.clips()[: request.limit]
    except ValueError as error:
        raise RequestError(str(error)) from None
    if not refs:
        raise RequestError(f"Dataset {request.dataset} has no clips there: nothing to plan.")
    return sampled_counts(source, refs, sampling, request.sample)


def _channels(recipe: ExtractRecipe) -> int:
    from pipeline.extract.models import CONCERTO_CONFIGS

    return sum(CONCERTO_CONFIGS[recipe.concerto.model].enc_channels[-recipe.concerto.levels :])


def _vision(recipe: ExtractRecipe) -> dict[str, tuple[int, int]]:
    """Tokens and channels of each `vision/NAME`: towers taken for the size of DINOv2-base."""
    from pipeline.extract.models import VGGT_CONFIGS

    side = recipe.frames.size // 14
    shapes = dict.fromkeys(recipe.vision.named, (side**2, 768))
    if recipe.vision.vggt:
        shapes["vggt"] = (side**2 + 5, VGGT_CONFIGS[recipe.vggt.model].embed_dim)
    return shapes


def _families(sizes: dict[str, float]) -> list[tuple[str, float]]:
    """Sizes by array, the largest first; what is under one part in a hundred is one line."""
    total = sum(sizes.values())
    large = [(name, size) for name, size in sizes.items() if size >= total / 100]
    small = sum(size for size in sizes.values() if size < total / 100)
    return [*sorted(large, key=lambda item: -item[1]), *([("all the rest", small)] if small else [])]


def _batches(probe: Probe) -> str:
    several = f", {probe.clips} clips a batch" if probe.clips > 1 else ""
    return f"{probe.frames} frames a clip{several}"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count / scale < 1000 else f"{count / scale:,.0f} {unit}"
    return f"{count / 1e3:.3g} kB"
