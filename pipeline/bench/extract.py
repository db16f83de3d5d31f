"""How fast the frozen models are, stage by stage, on frames of the tabletop world."""

import resource
from collections.abc import Callable
from typing import Any

import torch

from data_specs.records import Clip
from pipeline.bench.table import Table, columns_of, interleaved
from pipeline.config import ExtractRecipe
from pipeline.devices import choose_device
from pipeline.extract.geometry import lift
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.sources import open_source
from stages.vggt import VGGTEncoder

PUBLISHED_CPU_S = {"VGGT": 3.5, "Concerto": 1.2}
"""Seconds a frame of the authors' code on two cores, both heads and 7,048 voxels; only comparable with `full`."""


def bench_extract(recipe: ExtractRecipe, *, device: str, frames: int, rounds: int) -> Table:
    """Median seconds and frames/s of lifting (VGGT), of the whole mapper, and of what is left for the points."""
    place = choose_device(device)
    clip = _clip(recipe, frames)
    models = load_models(recipe, place)
    mapper = Mapper(recipe, models)
    both_heads = None if models.vggt is None else VGGTEncoder(models.vggt.vggt, point_source="head")

    def synchronised(action: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            action()
            if place.type == "cuda":
                torch.cuda.synchronize(place)

        return run

    tokens: list[int] = []

    def lifted() -> None:
        with torch.inference_mode():
            lift(clip, recipe.geometry, models.vggt, place)

    def lifted_as_published() -> None:
        # the authors' script: frame by frame, point head and all
        rgb = torch.from_numpy(clip.rgb).to(place).permute(0, 3, 1, 2).float() / 255
        for frame in rgb:
            assert both_heads is not None
            both_heads(frame[None])

    def mapped() -> None:
        tokens.append(len(mapper(clip).tokens.feat))

    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    names = {"lift (VGGT)": synchronised(lifted), "whole mapper": synchronised(mapped)}
    if both_heads is not None:
        names["lift, both heads, frame by frame"] = synchronised(lifted_as_published)
    medians = interleaved(names, rounds)
    # by difference: the mapper lifts first
    medians["points and Concerto"] = medians["whole mapper"] - medians["lift (VGGT)"]
    rows = []
    for name, seconds in medians.items():
        row: dict[str, Any] = {"stage": name, "s/frame": seconds / len(clip), "frames/s": len(clip) / seconds}
        if recipe.vggt.model == "vggt_1b" and recipe.concerto.model == "base" and place.type == "cpu":
            published = {
                "lift (VGGT)": PUBLISHED_CPU_S["VGGT"],
                "lift, both heads, frame by frame": PUBLISHED_CPU_S["VGGT"],
                "points and Concerto": PUBLISHED_CPU_S["Concerto"],
                "whole mapper": sum(PUBLISHED_CPU_S.values()),
            }[name]
            row["published s/frame"] = published
            row["times faster"] = published / row["s/frame"]
        rows.append(row)
    columns, values = columns_of(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    notes = [f"{len(clip)} frames a clip, {tokens[-1] / len(clip):.0f} tokens a frame, peak memory {peak:.1f} GB"]
    if place.type == "cuda":
        notes.append(f"peak device memory {torch.cuda.max_memory_allocated(place) / 1e9:.1f} GB")
    if any(record.random for record in models.records):
        notes.append("random weights: times are those of trained ones, features are not")
    return Table(
        title=f"cla bench extract: recipe {recipe.name} on {place}",
        columns=columns,
        rows=values,
        notes=tuple(notes),
        figures={"peak_rss_gb": peak, "frames": len(clip), "recipe": recipe.model_dump(mode="json")},
    )


def _clip(recipe: ExtractRecipe, frames: int) -> Clip:
    source = open_source("tabletop", None, None, {"clips": "1", "seed": "0"})
    sampling = recipe.frames.model_copy(update={"fps": None, "stride": 1, "max": frames, "min": frames})
    return source.read(source.clips()[0], sampling)
