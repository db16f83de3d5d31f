import pytest
import torch
from torch import nn

from stages.policy_table import FROZEN_PARAMETERS, PartRow, parameter_table
from stages.vision import TowerConfig, VisionConfig
from stages.vla import VLA, VLAConfig


def _of(config: VLAConfig) -> dict[str, PartRow]:
    with torch.device("meta"):
        model = VLA(config)
    rows = parameter_table(model)
    assert rows[-1].trained == sum(p.numel() for p in model.parameters())
    return {row.part: row for row in rows}


def _seen(parts: str) -> VisionConfig:
    return VisionConfig(parts=parts)


def test_full_sizes_are_those_of_the_recipes() -> None:
    simple = _of(VLAConfig())
    assert simple["total"].trained == pytest.approx(50e6, rel=0.05)
    assert simple["vision.patch"].trained == 768 * 768 + 768
    assert [part for part, row in simple.items() if row.frozen] == ["language", "total"]
    dinov2 = _of(VLAConfig(vision=_seen("tower")))
    assert dinov2["vision/dinov2"].frozen == 86_580_480
    without_words = dinov2["total"].trained + dinov2["vision/dinov2"].frozen
    assert without_words == pytest.approx(135e6, rel=0.02)
    full = _of(VLAConfig(vision=_seen("tower"), backbone="vggt"))
    assert full["total"].trained == pytest.approx(66e6, rel=0.02)
    assert full["total"].frozen == sum(
        FROZEN_PARAMETERS[name] for name in ("Qwen/Qwen3-0.6B-Base", "facebook/dinov2-base", "facebook/VGGT-1B")
    )
    points = _of(VLAConfig(vision=_seen("concerto")))
    assert points["total"].trained == pytest.approx(55e6, rel=0.02)
    assert points["tokens"].frozen == 108_461_376 and "concerto_base" in points["tokens"].note


def test_the_sizes_of_the_frozen_models_are_those_of_their_configs() -> None:
    from transformers import (
        BertConfig,
        BertModel,
        CLIPTextConfig,
        CLIPTextModel,
        Dinov2Config,
        Dinov2Model,
        Qwen3Config,
        Qwen3Model,
    )

    from stages.concerto.config import TINY, ConcertoConfig
    from stages.concerto.model import PointTransformerV3
    from stages.vggt.aggregator import Aggregator
    from stages.vggt.config import VGGT_TINY, VGGTConfig

    qwen = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    )
    mini = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    clip = CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
    with torch.device("meta"):
        models: dict[str, nn.Module] = {
            "sentence-transformers/all-MiniLM-L6-v2": BertModel(mini),
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": CLIPTextModel(clip),
            "builtin:concerto_tiny": PointTransformerV3(TINY),
            "builtin:vggt_tiny": Aggregator(VGGT_TINY),
            "Qwen/Qwen3-0.6B-Base": Qwen3Model(qwen),
            "facebook/dinov2-base": Dinov2Model(Dinov2Config(image_size=518)),
            "facebook/VGGT-1B": Aggregator(VGGTConfig()),
            "Pointcept/Concerto/concerto_base.pth": PointTransformerV3(ConcertoConfig()),
        }
    assert {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()} == dict(FROZEN_PARAMETERS)


def test_another_encoder_is_named_and_not_counted() -> None:
    with torch.device("meta"):
        model = VLA(VLAConfig(vision=VisionConfig(parts="tower", tower=TowerConfig(names="siglip"))))
    rows = {row.part: row for row in parameter_table(model, {"vision/siglip": "google/siglip-base-patch16-224"})}
    assert rows["vision/siglip"].frozen is None and "google/siglip" in rows["vision/siglip"].note
    assert "without vision/siglip" in rows["total"].note


def test_parameters_that_a_model_freezes_itself_are_counted_as_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).requires_grad_(True)
    model[0].requires_grad_(False)
    assert [(row.trained, row.frozen) for row in parameter_table(model)] == [(0, 9), (16, 0), (16, 9)]
