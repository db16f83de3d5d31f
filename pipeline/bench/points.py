"""How many coarse tokens N' a frame has, by normalisation, scope, sampling and geometry: what the defaults rest on."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.records import BadClip
from pipeline.bench.table import Table, columns_of
from pipeline.config import ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.sources import open_source


def bench_points(dataset: str, *, root: Path | None, recipe: ExtractRecipe, clips: int) -> Table:
    """N' (min, median, max) and bytes of tokens a frame for each setting, over the first `clips` clips."""
    source = open_source(dataset, root, None, {})
    refs = source.clips()[:clips]
    decoded = [source.read(ref, recipe.frames) for ref in refs if ref.problem is None]
    geometries = ["vggt", "vggt_window"] + (
        ["sensor"] if source.spec.has_depth and decoded[0].depth is not None else []
    )
    models = load_models(recipe, choose_device("auto"))
    rows: list[dict[str, Any]] = []
    for geometry, normalise, per, sampling in product(
        geometries, ("unit", "scene"), ("clip", "frame"), ("random", "voxel", "fps")
    ):
        if sampling != "random" and per == "frame":
            continue  # the scope and the sampling hardly interact: one of them at a time
        setting = recipe.model_copy(
            update={
                "geometry": recipe.geometry.model_copy(update={"source": geometry}),
                "points": recipe.points.model_copy(update={"normalise": normalise, "per": per, "sampling": sampling}),
            }
        )
        mapper = Mapper(setting, models)
        counts: list[int] = []
        rejected = 0
        for clip in decoded:
            try:
                counts += np.diff(mapper(clip).tokens.offset).tolist()
            except BadClip:
                rejected += 1
        if not counts:
            raise RequestError(f"every clip of {dataset} was rejected with geometry.source={geometry}")
        rows.append(
            {
                "geometry": geometry,
                "normalise": normalise,
                "per": per,
                "sampling": sampling,
                "N' min": min(counts),
                "median": float(np.median(counts)),
                "max": max(counts),
                "rejected": rejected,
            }
        )
    columns, values = columns_of(rows)
    return Table(
        title=f"cla bench points: {dataset}, {len(decoded)} clips, recipe {recipe.name}, grid {recipe.concerto.grid:g}",
        columns=columns,
        rows=values,
    )
