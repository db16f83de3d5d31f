"""Bytes a frame by array of the store: as a probe wrote them, or from typical figures where nothing is run."""

import tempfile
from dataclasses import replace

from data_specs.records import ClipRecord
from data_specs.shards import VISION, Format, Manifest
from pipeline.config import ExtractRecipe
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter

REST = "headers and metadata"
SLOTS = 8192
"""Points a frame of the typical figures."""

# Bytes a frame of 8,192 points: `cla bench size`, films of the tabletop world with noise, depth of a trained VGGT
# (docs/benchmarks.md).
TYPICAL_POINTS = {"points/pixel": 6_200, "points/rgb": 15_400, "points/depth": 12_150, "points/conf": 4_400}
TYPICAL_IMAGE = 12_500
CELL_BYTES, TOKENS_A_CELL = 5, 3.5
"""Of a (cell, token) pair; pairs for each token, about."""

CAMERA_BYTES = 4 * (9 + 12 + 2 + 2 + 4)


def written_bytes(record: ClipRecord, manifest: Manifest) -> dict[str, float]:
    """Bytes a frame by array, with `REST`, that one more clip such as this one adds to a shard.

    The difference of a shard of two such clips and one of one, so that what a shard has once does not count.
    """
    with tempfile.TemporaryDirectory(prefix="cla-plan-") as folder:
        layout = StoreLayout.create(folder, manifest)
        total: list[dict[str, float]] = []
        for copies in (1, 2):
            writer = ShardWriter(layout, f"{copies:06d}")
            for copy in range(copies):
                writer.add(replace(record, key=f"clip-{copy}"))
            sidecar = writer.commit()
            assert sidecar.file is not None
            sizes: dict[str, float] = {name: entry.bytes for name, entry in sidecar.arrays.items()}
            sizes[REST] = sidecar.file.bytes - sum(sizes.values())
            total.append(sizes)
    return {name: max(0.0, size - total[0][name]) / len(record) for name, size in total[1].items()}


def typical_bytes(
    recipe: ExtractRecipe, *, tokens: float, channels: int, vision: dict[str, tuple[int, int]], form: Format
) -> dict[str, float]:
    """Bytes a frame by array from typical figures: `tokens` N' of `channels`; points by the recipe's count."""
    pairs, slots = tokens * TOKENS_A_CELL, recipe.points.count if recipe.store.points else 0
    sizes = {
        "tokens/feat": tokens * channels * (1 if recipe.tokens.dtype == "int8" else 2),
        "tokens/coord": tokens * 6,
        "tokens/count": tokens * 2,
        "cells": pairs * CELL_BYTES,
        **{name: size * slots / SLOTS for name, size in TYPICAL_POINTS.items()},
        "camera": CAMERA_BYTES,
        "rgb/data": TYPICAL_IMAGE * (recipe.frames.size / 224) ** 2,
        "offsets and times": 5 * 8,
    }
    if recipe.tokens.dtype == "int8":
        sizes["tokens/scale"] = 2 * channels
    sizes |= {VISION + name: 2.0 * count * width for name, (count, width) in vision.items()}
    if form == "webdataset":
        sizes[REST] = 30 * 1024 / (recipe.frames.max or 32)  # some 30 members a clip
    return sizes
