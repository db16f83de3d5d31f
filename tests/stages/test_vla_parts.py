"""What the parts of a policy's vision bring with them: auxiliary losses, sizes, precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from data_specs.batches import PolicyBatch
from stages.language import LanguageConfig, LanguageTokens
from stages.vision import ConcertoConfig, FrozenVision, TowerConfig, VisionConfig, VisionTokens
from stages.vla import VLA, AdapterConfig, VLAConfig

SMALL = VLAConfig(
    dim=32,
    depth=1,
    heads=2,
    hidden=64,
    queries=6,
    horizon=4,
    vision=VisionConfig(
        parts="tower",
        tower=TowerConfig(channels=16),
        concerto=ConcertoConfig(channels=24, dim=16, layers=1, heads=2, hidden=32),
    ),
    language=LanguageConfig(channels=48, hidden=32),
    adapter=AdapterConfig(channels=20, bottleneck=16, heads=2),
)


def _model(**changes: Any) -> VLA:
    torch.manual_seed(0)
    return VLA(replace(SMALL, **changes))


def _batch(horizon: int = 4) -> PolicyBatch:
    return PolicyBatch.example(
        3, language=48, horizon=horizon, points=300, channels=24, vision={"dinov2": (16, 16), "vggt": (9 + 5, 20)}
    )


class _Foreseeing(FrozenVision):
    """A part that learns something of its own, from what was said."""

    def forward(self, batch: PolicyBatch, language: LanguageTokens | None = None) -> VisionTokens:
        seen = super().forward(batch, language)
        assert language is not None and language.tokens.shape == (3, language.mask.shape[1], 32)
        return replace(seen, losses={} if batch.action is None else {"foreseen": seen.tokens.square().mean()})


def test_losses_of_the_vision_are_added_with_their_weight() -> None:
    batch, losses = _batch(), {}
    for weight in (0.0, 0.5):
        model = _model(auxiliary=weight)
        part = _Foreseeing("dinov2", 16, 0, 32)
        part.load_state_dict(model.vision["tower_dinov2"].state_dict())
        model.vision["tower_dinov2"] = part
        loss, metrics = model(batch)
        assert not metrics["loss/foreseen"].requires_grad
        losses[weight] = loss.detach()
    torch.testing.assert_close(losses[0.0], _model()(batch)[0].detach())
    torch.testing.assert_close(losses[0.5] - losses[0.0], 0.5 * metrics["loss/foreseen"])
    assert model.act(replace(batch, action=None, is_pad=None)).shape == (3, 4, 7)


@pytest.mark.parametrize("backbone", ["graph", "vggt"])
def test_bfloat16_autocast_is_near_float32(backbone: Any) -> None:
    model = _model(backbone=backbone, vision=replace(SMALL.vision, parts="patch+tower+concerto"))
    batch = _batch()
    exact = model(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model(batch)
        answer = model.act(batch)
    assert loss.dtype == answer.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.02, rtol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_of_longer_chunks_the_first_steps_are_learned() -> None:
    model, longer = _model(), _batch(horizon=9)
    action, is_pad = longer.need_action()
    first = replace(longer, action=action[:, :4], is_pad=is_pad[:, :4])
    assert torch.equal(model(longer)[0], model(first)[0])


def test_a_coarser_grid_is_fewer_tokens() -> None:
    coarse = replace(SMALL.vision, parts="concerto", concerto=replace(SMALL.vision.concerto, grid=7))
    model, batch = _model(vision=coarse), _batch()
    seen = model.parts["concerto"](batch)
    assert seen.tokens.shape == (3, 49, 32) and seen.grid == (7, 7)
    assert seen.place is not None and torch.allclose(seen.place[0, 0], torch.tensor([1 / 14, 1 / 14]))
    model(batch)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
