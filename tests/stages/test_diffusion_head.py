from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.draw import Draw
from stages.heads.base import HeadSizes
from stages.heads.diffusion import DiffusionHead, DiffusionHeadConfig

SMALL = DiffusionHeadConfig(dim=32, layers=2, heads=2, hidden=64, levels=50, steps=10, repeats=1)
SIZES = HeadSizes(dim=24, queries=5, horizon=6, action=2)


def _head(config: DiffusionHeadConfig = SMALL) -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(config, SIZES)
    nn.init.normal_(head.denoiser.out.weight, std=0.2)  # it starts at 0, which would hide what reaches it
    return head


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Features, actions, padding (none, some, all but one step)."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor([6, 4, 1, 3])[:, None]
    features, actions = torch.randn(4, 5, 24, generator=generator), torch.randn(4, 6, 2, generator=generator)
    return features, actions, torch.arange(6) >= kept


def _gradients(head: DiffusionHead, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    features, _, is_pad = _inputs()
    head.zero_grad()
    loss, _ = head.loss(features, actions, is_pad, Draw.whole(4))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_every_parameter_learns(prediction: Any) -> None:
    head = _head(replace(SMALL, prediction=prediction))
    features, actions, is_pad = _inputs()
    loss, scalars = head.loss(features, actions, is_pad, Draw.whole(4))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
    assert torch.equal(scalars["mse"], loss.detach()) and not scalars["mse"].requires_grad


@pytest.mark.parametrize("filler", [1e4, float("nan")])
def test_what_is_in_padded_steps_changes_nothing(filler: float) -> None:
    head = _head()
    _, actions, is_pad = _inputs()
    loss, gradients = _gradients(head, actions)
    other_loss, other = _gradients(head, actions.masked_fill(is_pad[..., None], filler))
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(value, other[name]) for name, value in gradients.items())
    third = actions.clone()
    third[2, 0] += 1  # a real step does count
    assert not torch.equal(_gradients(head, third)[0], loss)


def test_padded_steps_get_no_gradient() -> None:
    head = _head()
    features, actions, is_pad = _inputs()
    kept: list[Tensor] = []
    head.denoiser.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), kept.append(output))[0])
    head.loss(features, actions, is_pad, Draw.whole(4))[0].backward()
    gradient = kept[0].grad
    assert gradient is not None and (gradient[is_pad] == 0).all() and (gradient[~is_pad] != 0).all()


def test_a_moment_of_nothing_but_padding_counts_as_0() -> None:
    head = _head()
    features, actions, _ = _inputs()
    loss, _ = head.loss(features, actions, torch.ones(4, 6, dtype=torch.bool), Draw.whole(4))
    loss.backward()
    assert loss == 0 and all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


def test_the_error_is_that_of_unpadded_steps_of_the_named_quantity() -> None:
    features, actions, is_pad = _inputs()
    draw = Draw.whole(4)
    level, noise = draw.integers(50, 1)[:, 0], draw.normal(1, 6, 2)[:, 0]
    for prediction in ("epsilon", "sample", "v_prediction"):
        head = DiffusionHead(replace(SMALL, prediction=prediction), SIZES)  # type: ignore[arg-type]
        kept = head._noise.alphas_cumprod[level][:, None, None]  # the output is 0 at the start: the target is left
        target = {
            "epsilon": noise,
            "sample": actions,
            "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * actions,
        }[prediction]
        by_hand = [target[b].square()[~is_pad[b]].mean() for b in range(4)]
        loss, _ = head.loss(features, actions, is_pad, Draw.whole(4))
        torch.testing.assert_close(loss.detach(), torch.stack(by_hand).mean())


def test_repeats_are_further_draws_for_the_same_moments() -> None:
    head = _head(replace(SMALL, repeats=3))
    features, actions, is_pad = _inputs()
    loss, _ = head.loss(features, actions, is_pad, Draw.whole(4))
    draw = Draw.whole(4)
    level, noise = draw.integers(50, 3), draw.normal(3, 6, 2)
    by_hand = []
    for k in range(3):
        clean = actions.masked_fill(is_pad[..., None], 0)
        noisy = head._noise.add_noise(clean, noise[:, k], level[:, k])
        predicted = head.denoiser(noisy, level[:, k], head.denoiser.context(features))
        error = (predicted - head._noise.get_velocity(clean, noise[:, k], level[:, k])).square()
        by_hand += [error[b][~is_pad[b]].mean() for b in range(4)]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    with pytest.raises(ValueError, match="repeats=0"):
        DiffusionHead(replace(SMALL, repeats=0), SIZES)


class _Oracle(nn.Module):
    """Predicts what a perfect denoiser would, when every chunk is `actions`."""

    def __init__(self, head: DiffusionHead, actions: Tensor) -> None:
        super().__init__()
        self.kept, self.actions, self.kind = head._sampler.alphas_cumprod, actions, head.config.prediction

    def context(self, features: Tensor) -> Tensor:
        return features

    def forward(self, noisy: Tensor, level: Tensor, context: Tensor) -> Tensor:
        kept = self.kept[level][:, None, None]
        noise = (noisy - kept.sqrt() * self.actions) / (1 - kept).sqrt()
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * self.actions
        return {"epsilon": noise, "sample": self.actions, "v_prediction": velocity}[self.kind]


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_sampler_arrives_at_what_the_denoiser_foresees(prediction: Any, steps: int) -> None:
    head = _head(replace(SMALL, prediction=prediction, steps=steps))
    features, actions, _ = _inputs()
    head.denoiser = _Oracle(head, actions)  # type: ignore[assignment]
    torch.testing.assert_close(head.act(features, Draw.whole(4)), actions, atol=2e-3, rtol=1e-3)


def test_a_clip_bounds_what_is_foreseen() -> None:
    features, actions, _ = _inputs()
    head = _head(replace(SMALL, clip=0.5))
    head.denoiser = _Oracle(head, actions)  # type: ignore[assignment]
    torch.testing.assert_close(head.act(features, Draw.whole(4)), actions.clamp(-0.5, 0.5), atol=2e-3, rtol=1e-3)


def test_sampling_depends_on_the_draw_alone() -> None:
    head = _head().eval()
    features, _, _ = _inputs()
    with torch.no_grad():
        first, second = (head.act(features, Draw.whole(4, seed=3)) for _ in range(2))
        other = head.act(features, Draw.whole(4, seed=4))
        parts = [head.act(features[i : i + 2], Draw(3, 0, start=i, count=2, total=4)) for i in (0, 2)]
    assert first.shape == (4, 6, 2) and first.dtype == torch.float32
    assert torch.equal(first, second) and not torch.allclose(first, other)
    torch.testing.assert_close(torch.cat(parts), first)


def _two_ways(seed: int) -> Tensor:
    """Chunks of 64 demonstrations, half of which go left and half right around something."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.tensor([1.0, -1.0]).repeat(32)[:, None, None]
    return side * torch.linspace(0.5, 1, 6)[:, None] + 0.03 * torch.randn(64, 6, 2, generator=generator)


def test_it_goes_one_of_two_ways_where_l1_goes_between() -> None:
    features = torch.zeros(64, 5, 24)
    is_pad = torch.zeros(64, 6, dtype=torch.bool)
    torch.manual_seed(0)
    head = DiffusionHead(SMALL, SIZES)
    regression = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 12))
    optimiser = torch.optim.Adam([*head.parameters(), *regression.parameters()], lr=2e-3)
    for step in range(400):
        optimiser.zero_grad()
        actions = _two_ways(step)
        loss, _ = head.loss(features, actions, is_pad, Draw.whole(64, step=step))
        (loss + (regression(features[:, 0]).view(64, 6, 2) - actions).abs().mean()).backward()
        optimiser.step()
    with torch.no_grad():
        drawn = head.act(features, Draw.whole(64, seed=1))
        middle = regression(features[:1, 0]).view(6, 2)
    away = (drawn.abs() - torch.linspace(0.5, 1, 6)[:, None]).abs()
    right = (drawn > 0).all(-1).all(-1)
    left = (drawn < 0).all(-1).all(-1)
    assert (away.amax((1, 2)) < 0.3).float().mean() > 0.9
    assert 0.2 < right.float().mean() < 0.8 and (right | left).float().mean() > 0.95
    assert middle.abs().max() < 0.45  # in neither way


def test_it_runs_under_bfloat16_autocast_and_checkpointing_changes_nothing() -> None:
    features, actions, is_pad = _inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scalars = _head().loss(features, actions, is_pad, Draw.whole(4))
        chunk = _head().act(features, Draw.whole(4))
    loss.backward()
    assert loss.dtype == chunk.dtype == scalars["mse"].dtype == torch.float32 and loss.isfinite()
    plain, checkpointed = (_gradients(_head(replace(SMALL, checkpoint=kept)), actions)[1] for kept in (False, True))
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())


def test_without_a_draw_the_generator_of_torch_decides() -> None:
    head = _head()
    features, actions, is_pad = _inputs()
    torch.manual_seed(1)
    first = head.loss(features, actions, is_pad)[0], head.act(features)
    torch.manual_seed(1)
    second = head.loss(features, actions, is_pad)[0], head.act(features)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_schedules_are_no_part_of_a_checkpoint_and_made_on_the_cpu() -> None:
    with torch.device("meta"):
        head = DiffusionHead(SMALL, SIZES)
    assert head._sampler.timesteps.tolist() == [49, 44, 39, 34, 29, 24, 19, 14, 9, 4]
    assert head._sampler.alphas_cumprod[-1] < 1e-4
    assert all(name.startswith("denoiser.") for name in head.state_dict())
    with pytest.raises(ValueError, match="7 denoising steps do not divide 50"):
        DiffusionHead(replace(SMALL, steps=7), SIZES)
