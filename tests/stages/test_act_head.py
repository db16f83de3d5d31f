from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.cvae import ChunkVAEConfig, Posterior, chunk_vae_loss, kl_to_standard_normal, sample_latent
from stages.draw import Draw
from stages.heads.act import ACTHead, ACTHeadConfig
from stages.heads.base import HeadSizes

SMALL = ACTHeadConfig(dim=32, heads=2, hidden=48, posterior_layers=2, latent=4, dropout=0.0)
SIZES = HeadSizes(dim=24, queries=5, horizon=6, action=3, state=2)


def _head(config: ACTHeadConfig = SMALL, sizes: HeadSizes = SIZES) -> ACTHead:
    torch.manual_seed(0)
    return ACTHead(config, sizes)


def _inputs(size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, actions, padding (none, some, all but one step), state."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.tensor([6, 4, 1, 3])[:size, None]
    return (
        torch.randn(size, 5, 24, generator=generator),
        torch.randn(size, 6, 3, generator=generator),
        torch.arange(6) >= kept,
        torch.randn(size, 2, generator=generator),
    )


def _gradients(head: ACTHead, actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    features, _, is_pad, state = _inputs()
    head.zero_grad()
    loss, _ = head.loss(features, actions, is_pad, Draw.whole(4), state_BS=state)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}


def test_every_parameter_learns_and_the_loss_is_l1_plus_10_kl() -> None:
    head = _head()
    features, actions, is_pad, state = _inputs()
    loss, scalars = head.loss(features, actions, is_pad, Draw.whole(4), state_BS=state)
    loss.backward()
    # as published, slots enter the first layer as 0: all values there are alike, and at the start its norm gives 0
    idle = ("decoder.layers.0.attention.", "decoder.layers.0.norm_attention.weight")
    silent = {name for name, p in head.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert all(name.startswith(idle) for name in silent), silent
    assert "decoder.layers.0.attention.out.bias" not in silent
    torch.testing.assert_close(loss.detach(), scalars["l1"] + 10 * scalars["kl"])
    assert scalars.keys() == {"l1", "kl", "padding"}
    assert all(not value.requires_grad and value.ndim == 0 for value in scalars.values())


def test_the_l1_is_that_of_unpadded_steps() -> None:
    config = ChunkVAEConfig(actions=3, horizon=6, kl_weight=0)
    _, actions, is_pad, _ = _inputs()
    predicted = torch.randn(4, 6, 3)
    normal = (torch.zeros(4, 2), torch.zeros(4, 2))
    loss, scalars = chunk_vae_loss(config, (predicted, torch.zeros(4, 6)), normal, actions, is_pad)
    by_hand = [(predicted[b] - actions[b]).abs()[~is_pad[b]].mean() for b in range(4)]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    torch.testing.assert_close(scalars["padding"], torch.tensor(2.0).log())


def test_padded_steps_get_no_gradient() -> None:
    config = ChunkVAEConfig(actions=3, horizon=6)
    _, actions, is_pad, _ = _inputs()
    predicted = torch.randn(4, 6, 3, requires_grad=True)
    normal = (torch.zeros(4, 2), torch.zeros(4, 2))
    loss, _ = chunk_vae_loss(config, (predicted, torch.zeros(4, 6)), normal, actions, is_pad)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient[is_pad] == 0).all() and (gradient[~is_pad] != 0).all()


@pytest.mark.parametrize("filler", [1e4, float("nan")])
def test_what_is_in_padded_steps_changes_nothing(filler: float) -> None:
    head = _head()
    _, actions, is_pad, _ = _inputs()
    loss, gradients = _gradients(head, actions)
    other_loss, other = _gradients(head, actions.masked_fill(is_pad[..., None], filler))
    assert torch.equal(loss, other_loss) and gradients.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in gradients.items())
    third = actions.clone()
    third[0, 0] += 1  # a real step does count
    assert not torch.equal(_gradients(head, third)[0], loss)


def test_the_padding_output_learns_the_end_and_teaches_only_itself() -> None:
    head = _head()
    features, actions, is_pad, state = _inputs()
    posterior = head.posterior(actions, is_pad, state)
    _, logits = head._decode(features, sample_latent(*posterior, Draw.whole(4)))
    logits.square().sum().backward()
    assert {name for name, p in head.named_parameters() if p.grad is not None} == {
        "decoder.padding.weight",
        "decoder.padding.bias",
    }
    optimiser = torch.optim.Adam(head.decoder.padding.parameters(), lr=0.1)
    features, is_pad = features[:1], is_pad[1:2]
    for step in range(60):
        optimiser.zero_grad()
        head.loss(features, actions[:1], is_pad, Draw.whole(1, step=step), state_BS=state[:1])[0].backward()
        optimiser.step()
    assert torch.equal(head._decode(features, torch.zeros(1, 4))[1] > 0, is_pad)


def test_the_latent_at_inference_is_0_and_nothing_is_drawn() -> None:
    head = _head().eval()
    features = _inputs()[0]
    before = torch.get_rng_state()
    chunk = head.act(features)
    assert torch.equal(torch.get_rng_state(), before)
    assert chunk.shape == (4, 6, 3) and chunk.dtype == torch.float32
    assert torch.equal(chunk, head._decode(features, torch.zeros(4, 4))[0])
    assert not torch.allclose(chunk, head._decode(features, torch.ones(4, 4))[0])
    torch.testing.assert_close(head.act(features[:1]), chunk[:1])


def test_the_latent_says_which_of_two_ways() -> None:
    """One feature, two ways to go: with the latent of its actions each is reproduced."""
    head = _head(replace(SMALL, kl_weight=0.01))
    features = _inputs()[0][:1].expand(2, -1, -1)
    actions = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 6, 3)
    is_pad, state = torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 2)
    optimiser = torch.optim.Adam(head.parameters(), lr=2e-3)
    for step in range(200):
        optimiser.zero_grad()
        loss, _ = head.loss(features, actions, is_pad, Draw.whole(2, step=step), state_BS=state)
        loss.backward()
        optimiser.step()
    mean, _ = head.posterior(actions, is_pad, state)
    with torch.no_grad():
        assert (head._decode(features, mean)[0] - actions).abs().max() < 0.3


def test_draws_make_training_repeat() -> None:
    head = _head()
    features, actions, is_pad, state = _inputs()
    losses = [head.loss(features, actions, is_pad, Draw.whole(4, step=step), state_BS=state)[0] for step in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_kl_is_the_divergence_from_a_standard_normal() -> None:
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_latents_are_drawn_from_the_posterior() -> None:
    mean, log_variance = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, -2.0]])
    latent = sample_latent(mean.expand(20_000, -1), log_variance.expand(20_000, -1), Draw.whole(20_000))
    torch.testing.assert_close(latent.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(latent.var(0).log(), log_variance[0], atol=0.05, rtol=0)


def test_the_posterior_tells_the_order_of_steps() -> None:
    torch.manual_seed(0)
    posterior = Posterior(ChunkVAEConfig(actions=3, horizon=6, dim=32, heads=2, hidden=48, dropout=0))
    _, actions, is_pad, _ = _inputs()
    mean, log_variance = posterior(actions[:1], is_pad[:1], None)
    assert mean.shape == log_variance.shape == (1, 32)
    assert not torch.allclose(mean, posterior(actions[:1].flip(1), is_pad[:1], None)[0])


def test_it_runs_under_bfloat16_autocast_and_checkpointing_changes_nothing() -> None:
    features, actions, is_pad, state = _inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scalars = _head().loss(features, actions, is_pad, Draw.whole(4), state_BS=state)
        chunk = _head().act(features)
    loss.backward()
    assert loss.dtype == chunk.dtype == torch.float32 and loss.isfinite()
    assert all(value.dtype == torch.float32 for value in scalars.values())
    plain, checkpointed = (_gradients(_head(replace(SMALL, checkpoint=kept)), actions)[1] for kept in (False, True))
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())


def test_a_robot_without_a_state() -> None:
    features, actions, is_pad, _ = _inputs()
    head = _head(sizes=replace(SIZES, state=0))
    loss, _ = head.loss(features, actions, is_pad)
    assert loss.isfinite()
