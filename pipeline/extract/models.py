"""The frozen models of a recipe, built, loaded and put on a device."""

import sys
from dataclasses import dataclass

import torch

from data_specs.shards import ModelRecord
from pipeline.config import ExtractRecipe, RequestError
from pipeline.extract.weights import Weights, find_weights, load_into
from stages import concerto as concerto_stage
from stages import vggt as vggt_stage

VGGT_CONFIGS = {"vggt_1b": vggt_stage.VGGT_1B, "small": vggt_stage.VGGT_SMALL, "tiny": vggt_stage.VGGT_TINY}
CONCERTO_CONFIGS = {
    "base": concerto_stage.BASE,
    "small": concerto_stage.SMALL,
    "large": concerto_stage.LARGE,
    "tiny": concerto_stage.TINY,
}


@dataclass(frozen=True, kw_only=True)
class FrozenModels:
    """`vggt` is None where the geometry comes from sensors."""

    vggt: vggt_stage.VGGTEncoder | None
    concerto: concerto_stage.ConcertoEncoder
    device: torch.device
    records: tuple[ModelRecord, ...]
    channels: int


def find_all(recipe: ExtractRecipe) -> dict[str, Weights]:
    """The weights that the recipe's models need, by role."""
    found = {}
    if recipe.geometry.source != "sensor":
        found["vggt"] = find_weights("vggt", recipe.vggt.weights, recipe.vggt.revision)
    found["concerto"] = find_weights("concerto", recipe.concerto.weights, recipe.concerto.revision)
    return found


def announce_random(records: tuple[ModelRecord, ...]) -> None:
    """Say on stderr which models have random weights: their features mean nothing beyond a test of the path."""
    for record in records:
        if record.random:
            sys.stderr.write(f"warning: {record.role} has RANDOM weights ({record.name}); not a trained model\n")


def load_models(recipe: ExtractRecipe, device: torch.device) -> FrozenModels:
    """Build, load and place the models of `recipe`; RequestError when weights are missing or do not fit."""
    found = find_all(recipe)
    records = tuple(weights.record for weights in found.values())
    announce_random(records)
    vggt = None
    if "vggt" in found:
        vggt = vggt_stage.VGGTEncoder(_build_vggt(recipe, found["vggt"])).to(device).eval()
    encoder = _build_concerto(recipe, found["concerto"])
    return FrozenModels(
        vggt=vggt,
        concerto=encoder.to(device).eval(),
        device=device,
        records=records,
        channels=encoder.out_channels,
    )


def _build_vggt(recipe: ExtractRecipe, weights: Weights) -> vggt_stage.VGGT:
    config = dict(weights.config) if weights.config else VGGT_CONFIGS[recipe.vggt.model].to_dict()
    if weights.seed is not None:
        model = vggt_stage.build_vggt(config)
        vggt_stage.init_random(model, weights.seed)
    else:
        with torch.device("meta"):
            model = vggt_stage.build_vggt(config)
        load_into(model, weights, "vggt")
    return model.requires_grad_(False)


def _build_concerto(recipe: ExtractRecipe, weights: Weights) -> concerto_stage.ConcertoEncoder:
    section = recipe.concerto
    try:
        config = dict(weights.config) if weights.config else CONCERTO_CONFIGS[section.model].to_dict()
        if weights.seed is not None:
            model = concerto_stage.build_concerto(config, sparse=section.sparse)
            concerto_stage.init_random(model, weights.seed)
        else:
            with torch.device("meta"):
                model = concerto_stage.build_concerto(config, sparse=section.sparse)
            load_into(model, weights, "concerto")
    except (ValueError, ImportError) as error:
        raise RequestError(str(error)) from None
    return concerto_stage.ConcertoEncoder(model.requires_grad_(False), levels=section.levels)
