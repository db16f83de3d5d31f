"""The frozen models of a recipe, built, loaded and put on a device."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from data_specs.shards import VISION, ModelRecord
from pipeline.config import ExtractRecipe, RequestError
from pipeline.extract.encoders.folder import first_of
from pipeline.extract.encoders.text import TextEncoder, TextWeights, find_text, load_text
from pipeline.extract.encoders.towers import TowerWeights, VisionTower, find_tower, load_tower, vggt_shape
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


CLOUD, TEXT = "cloud", "text"
"""Parts of a recipe's models, beside a part `vision/NAME` for each image encoder: what makes geometry and 3D tokens,
and what reads instructions."""


@dataclass(frozen=True, kw_only=True)
class FrozenModels:
    """The models of a recipe, or of the parts of it that were asked for.

    `vggt` is None where the geometry comes from sensors and nothing else needs it, `text` for a recipe without a text
    encoder; `towers` are image encoders by name. `channels` is of the 3D tokens, `vision` gives (tokens, channels) of
    each column `vision/NAME` by name.
    """

    vggt: vggt_stage.VGGTEncoder | None
    concerto: concerto_stage.ConcertoEncoder | None
    device: torch.device
    records: tuple[ModelRecord, ...]
    channels: int
    text: TextEncoder | None = None
    towers: Mapping[str, VisionTower] = field(default_factory=dict)
    vision: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def vision_bytes(self) -> int:
        """Bytes a frame of all columns `vision/NAME`."""
        return sum(2 * tokens * channels for tokens, channels in self.vision.values())


def parts_of(recipe: ExtractRecipe) -> frozenset[str]:
    """All parts of a recipe's models."""
    vision = [*recipe.vision.named, *(["vggt"] if recipe.vision.vggt else [])]
    return frozenset([CLOUD, *([TEXT] if recipe.text.weights else []), *(VISION + name for name in vision)])


def find_all(recipe: ExtractRecipe, parts: Collection[str]) -> dict[str, Weights | TextWeights | TowerWeights]:
    """The weights that these parts of a recipe need, by role, in the order of a manifest."""
    found: dict[str, Weights | TextWeights | TowerWeights] = {}
    if (CLOUD in parts and recipe.geometry.source != "sensor") or VISION + "vggt" in parts:
        found["vggt"] = _find("vggt", recipe.vggt.weights, recipe.vggt.revision)
    if CLOUD in parts:
        found["concerto"] = _find("concerto", recipe.concerto.weights, recipe.concerto.revision)
    if TEXT in parts:
        found[TEXT] = find_text(recipe.text)
    for name, description in recipe.vision.named.items():
        if VISION + name in parts:
            found[VISION + name] = find_tower(name, description)
    return found


def _find(role: str, weights: str, revision: str) -> Weights:
    return first_of(f"{role}.weights", weights, lambda spec: find_weights(role, spec, revision))


def announce_random(records: tuple[ModelRecord, ...]) -> None:
    """Say on stderr which models have random weights: their features mean nothing beyond a test of the path."""
    for record in records:
        if record.random:
            sys.stderr.write(f"warning: {record.role} has RANDOM weights ({record.name}); not a trained model\n")


def load_models(recipe: ExtractRecipe, device: torch.device, *, parts: Collection[str] | None = None) -> FrozenModels:
    """Build, load and place the models of `recipe`, or of some of its parts.

    Raises RequestError when weights are missing or do not fit.
    """
    needed = parts_of(recipe) if parts is None else frozenset(parts)
    assert needed <= parts_of(recipe), f"the recipe has no {', '.join(sorted(needed - parts_of(recipe)))}"
    found = find_all(recipe, needed)
    records = tuple(weights.record for weights in found.values())
    announce_random(records)
    vggt = concerto = text = None
    towers: dict[str, VisionTower] = {}
    vision: dict[str, tuple[int, int]] = {}
    for role, weights in found.items():
        if isinstance(weights, TextWeights):
            text = load_text(recipe.text, weights, device)
        elif isinstance(weights, TowerWeights):
            name = role.removeprefix(VISION)
            towers[name] = load_tower(name, recipe.vision, weights, recipe.frames.size, device)
            vision[name] = (towers[name].tokens, towers[name].channels)
        elif role == "vggt":
            model = _build_vggt(recipe, weights)
            if recipe.vggt.dtype == "bfloat16":
                hold_in_bfloat16(model.aggregator)  # the heads run in float32
            if recipe.vggt.compile:
                compile_blocks(model)
            with_tokens = recipe.vision.vggt and recipe.geometry.source == "vggt"
            vggt = vggt_stage.VGGTEncoder(model, tokens=with_tokens).to(device).eval()
            if recipe.vision.vggt:
                vision["vggt"] = vggt_shape(model, recipe.frames.size)
        else:
            concerto = _build_concerto(recipe, weights).to(device).eval()
            if recipe.concerto.dtype == "bfloat16":
                hold_in_bfloat16(concerto)
    return FrozenModels(
        vggt=vggt,
        concerto=concerto,
        device=device,
        records=records,
        channels=0 if concerto is None else concerto.out_channels,
        text=text,
        towers=towers,
        vision=vision,
    )


def hold_in_bfloat16(model: nn.Module) -> None:
    """Keep the weights of linear maps and sparse convolutions in the dtype to which autocast would round them anyway.

    What comes out under autocast is the same, bit for bit; the weights take half the memory, and nothing is converted
    in every run.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
        elif isinstance(module, concerto_stage.SubmanifoldConv3d):
            module.weight.data = module.weight.data.to(torch.bfloat16)  # its bias is added in float32


def compile_blocks(model: vggt_stage.VGGT) -> None:
    """Let torch.compile fuse what is between the products of the aggregator's blocks, when they first run.

    By block: they are alike, so that a few compilations serve all of them. A window of another length, or a batch of
    another size, is compiled once more, and then for any size.
    """
    for module in model.aggregator.modules():
        if isinstance(module, vggt_stage.Block):
            module.compile()


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
