"""The frozen models of a recipe at the sizes of the released ones, with random weights: for times, not for features."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from data_specs.shards import VISION, ModelRecord
from pipeline.config import ExtractRecipe, override
from pipeline.extract.encoders.folder import random_record
from pipeline.extract.encoders.loading import fill_random
from pipeline.extract.encoders.text import TextEncoder, word_ids
from pipeline.extract.encoders.towers import IMAGENET, VisionTower
from pipeline.extract.models import CLOUD, TEXT, FrozenModels, load_models, parts_of

TEXT_MODEL, TOWER_MODEL = "Qwen/Qwen3-0.6B-Base", "facebook/dinov2-base"
"""The released models whose sizes these have, beside VGGT-1B and Concerto base."""

_RANDOM = ("vggt.weights=random:0", "concerto.weights=random:0")


def full_size_recipe(recipe: ExtractRecipe) -> ExtractRecipe:
    """The recipe with VGGT-1B and Concerto base of random weights."""
    return override(recipe, [*_RANDOM, "vggt.model=vggt_1b", "concerto.model=base"])


def full_size_models(recipe: ExtractRecipe, device: torch.device) -> FrozenModels:
    """All models of a `full_size_recipe`: its text encoder is of Qwen3-0.6B's size, its towers are of DINOv2-base's."""
    parts = parts_of(recipe)
    models = load_models(recipe, device, parts=parts & {CLOUD, VISION + "vggt"})
    towers = {name: _tower(recipe.frames.size, device) for name in recipe.vision.named}
    text = _text(recipe, device) if TEXT in parts else None
    records = [_record(VISION + name, TOWER_MODEL) for name in towers]
    if text is not None:
        records.append(text.record)
    return replace(
        models,
        text=text,
        towers=towers,
        records=(*models.records, *records),
        vision={**models.vision, **{name: (tower.tokens, tower.channels) for name, tower in towers.items()}},
    )


def text_model() -> nn.Module:
    """Qwen3-0.6B-Base as its config has it: 28 layers of 1,024, 596M parameters."""
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
    )


def tower_model() -> nn.Module:
    """DINOv2-base as its config has it: 12 layers of 768, patches of 14 pixels, positions of pictures of 518."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_ratio=4, image_size=518, patch_size=14
    )
    return Dinov2Model(config)


def _random(model: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # its own initialisation, which is not kept
        return fill_random(model(), 0)


def _text(recipe: ExtractRecipe, device: torch.device) -> TextEncoder:
    limit = recipe.text.tokens
    return TextEncoder(
        _random(text_model),
        word_ids,
        lambda text: word_ids(text)[:limit],
        record=_record(TEXT, TEXT_MODEL),
        limit=limit,
        device=device,
        dtype=recipe.text.dtype,
    )


def _tower(size: int, device: torch.device) -> VisionTower:
    model, (mean, std) = _random(tower_model), IMAGENET
    return VisionTower(model, side=size, patch=14, channels=768, mean=mean, std=std).to(device).eval()


def _record(role: str, name: str) -> ModelRecord:
    return random_record(role, f"random weights at the size of {name}")
