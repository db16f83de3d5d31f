import math

import pytest
import torch
from torch import Tensor

from stages.nsvq import NSVQ, NSVQConfig, perplexity

CONFIG = NSVQConfig(dim=8, codes=32, tokens=4)


def _nsvq(seed: int = 0) -> NSVQ:
    torch.manual_seed(seed)
    return NSVQ(CONFIG)


def _latents(batch: int = 16, seed: int = 3) -> Tensor:
    return torch.randn(batch, CONFIG.tokens, CONFIG.dim, generator=torch.Generator().manual_seed(seed))


def test_training_puts_noise_of_the_length_of_the_error_in_place_of_it() -> None:
    nsvq, x = _nsvq(), _latents()
    out, codes = nsvq(x)
    error = (x - nsvq.lookup(codes)).norm(dim=-1)
    torch.testing.assert_close((out - x).norm(dim=-1), error)
    distances = torch.cdist(x.reshape(-1, 8), nsvq.codebook).view(16, 4, 32)
    assert torch.equal(codes, distances.argmin(-1))


def test_inference_looks_up_the_nearest_code() -> None:
    nsvq, x = _nsvq().eval(), _latents()
    out, codes = nsvq(x)
    assert torch.equal(out, nsvq.codebook[codes])
    assert torch.equal(out, nsvq(x)[0])
    assert not nsvq.total.any()


def test_the_gradient_reaches_the_chosen_codes_through_the_length() -> None:
    nsvq, x = _nsvq(), _latents().requires_grad_()
    torch.manual_seed(5)
    out, codes = nsvq(x)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
    (out * target).sum().backward()
    gradient = nsvq.codebook.grad
    assert gradient is not None and x.grad is not None
    used = torch.zeros(32, dtype=torch.bool).index_fill_(0, codes.flatten(), True)
    assert (gradient[used].norm(dim=-1) > 0).all()
    assert not gradient[~used].any()
    # by hand: d/de |x - e| = (e - x) / |x - e|, times the unit noise projected on the target
    torch.manual_seed(5)
    noise = torch.randn(out.shape)
    unit = noise / noise.norm(dim=-1, keepdim=True)
    difference = nsvq.lookup(codes) - x
    expected = difference / difference.norm(dim=-1, keepdim=True) * (unit * target).sum(-1, keepdim=True)
    by_hand = torch.zeros_like(gradient).index_add_(0, codes.flatten(), expected.detach().reshape(-1, 8))
    torch.testing.assert_close(gradient, by_hand, atol=1e-5, rtol=1e-4)


def test_codes_move_to_the_data_by_the_loss_of_the_task_alone() -> None:
    nsvq, x = _nsvq(), _latents(64) + 3
    before = (x - nsvq.lookup(nsvq.nearest(x))).norm(dim=-1).mean().item()
    optimiser = torch.optim.Adam([nsvq.codebook], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        (nsvq(x)[0] - x).square().mean().backward()
        optimiser.step()
    after = (x - nsvq.lookup(nsvq.nearest(x))).norm(dim=-1).mean().item()
    assert after < 0.6 * before


def test_a_vector_on_its_code_gives_finite_gradients() -> None:
    nsvq = _nsvq()
    x = nsvq.codebook.detach()[:4][None].clone().requires_grad_()
    nsvq(x)[0].square().sum().backward()
    assert x.grad is not None and nsvq.codebook.grad is not None
    assert x.grad.isfinite().all() and nsvq.codebook.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_changing_one_token_changes_only_that_latent(training: bool) -> None:
    nsvq, x = _nsvq().train(training), _latents()
    changed = x.clone()
    changed[3, 2] += 5.0
    torch.manual_seed(9)
    out, codes = nsvq(x)
    torch.manual_seed(9)
    out_changed, codes_changed = nsvq(changed)
    differs = (out != out_changed).any(-1)
    expected = torch.zeros(16, 4, dtype=torch.bool)
    expected[3, 2] = True
    assert torch.equal(differs, expected)
    assert torch.equal(codes != codes_changed, expected)


def test_the_global_random_state_repeats_the_noise() -> None:
    nsvq, x = _nsvq(), _latents()
    state = torch.get_rng_state()
    first, _ = nsvq(x)
    second, _ = nsvq(x)
    torch.set_rng_state(state)
    assert torch.equal(nsvq(x)[0], first)
    assert not torch.equal(first, second)


def test_choices_are_counted_in_buffers_that_are_saved() -> None:
    nsvq, x = _nsvq(), _latents()
    _, codes = nsvq(x)
    nsvq(x)
    expected = 2 * torch.bincount(codes.flatten(), minlength=32)
    assert torch.equal(nsvq.window, expected) and torch.equal(nsvq.total, expected)
    restored = _nsvq(1)
    restored.load_state_dict(nsvq.state_dict(), strict=True)
    assert torch.equal(restored.total, expected)
    nsvq.eval()(x)
    assert torch.equal(nsvq.total, expected)


def _collapsed() -> NSVQ:
    """Only code 5 was ever used."""
    nsvq = _nsvq()
    nsvq(nsvq.codebook.detach()[5].expand(64, 4, 8) + 0.01)
    assert nsvq.window[5] == 256
    return nsvq


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_two_codes_are_equal_after_replacement_whatever_the_scale(scale: float) -> None:
    nsvq = _nsvq()
    with torch.no_grad():
        nsvq.codebook.mul_(scale)
    nsvq(nsvq.codebook.detach()[5].expand(64, 4, 8) * 1.0001)
    source = nsvq.codebook.detach()[5].clone()
    assert nsvq.replace_unused(seed=0) == 31
    assert len(torch.unique(nsvq.codebook, dim=0)) == 32
    distance = (nsvq.codebook[:, None] - nsvq.codebook[None]).norm(dim=-1).fill_diagonal_(torch.inf)
    assert distance.min() > 1e-3 * source.norm()  # far above float32's resolution of the codes
    assert torch.equal(nsvq.nearest(nsvq.codebook), torch.arange(32))
    away = (nsvq.codebook - source).norm(dim=-1)
    assert away.max() < 0.1 * source.norm()
    assert torch.equal(nsvq.codebook[5], source)
    assert not nsvq.window.any() and nsvq.total[5] == 256


def test_replacement_is_a_function_of_its_seed() -> None:
    books = []
    for seed, disturb in ((1, 0), (1, 7), (2, 0)):
        nsvq = _collapsed()
        torch.manual_seed(disturb)
        nsvq.replace_unused(seed=seed)
        books.append(nsvq.codebook.detach().clone())
    assert torch.equal(books[0], books[1])
    assert not torch.equal(books[0], books[2])


def test_replacement_takes_samples_where_given_and_leaves_used_codes_alone() -> None:
    nsvq = _collapsed()
    before = nsvq.codebook.detach().clone()
    samples = torch.randn(100, 8, generator=torch.Generator().manual_seed(1)) * 20
    assert nsvq.replace_unused(seed=0, samples_SL=samples) == 31
    nearest = torch.cdist(nsvq.codebook[torch.arange(32) != 5], samples).min(-1).values
    assert nearest.max() < 1.0
    assert torch.equal(nsvq.codebook[5], before[5])


def test_an_empty_window_replaces_nothing() -> None:
    nsvq = _nsvq()
    before = nsvq.codebook.detach().clone()
    assert nsvq.replace_unused(seed=0) == 0
    assert torch.equal(nsvq.codebook, before)


@pytest.mark.parametrize("how", ["samples", "kmeans"])
def test_codes_start_from_data(how: str) -> None:
    samples = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 10
    nsvq = _nsvq()
    nsvq.init_from(samples, how=how, seed=4)  # type: ignore[arg-type]
    assert (nsvq.codebook.mean(0) - 10).abs().max() < 1
    assert len(torch.unique(nsvq.codebook, dim=0)) == 32
    assert len(torch.unique(nsvq.nearest(samples))) == 32
    again = _nsvq(7)
    again.init_from(samples, how=how, seed=4)  # type: ignore[arg-type]
    assert torch.equal(again.codebook, nsvq.codebook)


def test_kmeans_is_nearer_to_the_data_than_samples() -> None:
    samples = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    errors = {}
    for how in ("samples", "kmeans"):
        nsvq = _nsvq()
        nsvq.init_from(samples, how=how)  # type: ignore[arg-type]
        errors[how] = (samples - nsvq.lookup(nsvq.nearest(samples))).square().mean().item()
    assert errors["kmeans"] < 0.85 * errors["samples"]


def test_equal_and_few_samples_still_give_unequal_codes() -> None:
    nsvq = _nsvq()
    nsvq.init_from(torch.ones(3, 8), how="kmeans")
    assert len(torch.unique(nsvq.codebook, dim=0)) == 32


@pytest.mark.parametrize("samples", [torch.zeros(5, 7), torch.zeros(0, 8), torch.full((5, 8), torch.nan)])
def test_samples_that_cannot_be_codes_are_refused(samples: Tensor) -> None:
    with pytest.raises(ValueError, match="expected at least one finite vector of 8"):
        _nsvq().init_from(samples)


def test_perplexity() -> None:
    assert perplexity(torch.full((256,), 3)).item() == pytest.approx(256, rel=1e-5)
    one = torch.zeros(256, dtype=torch.int64)
    assert perplexity(one).item() == 1.0
    one[9] = 100
    assert perplexity(one).item() == 1.0
    one[7] = 100
    assert perplexity(one).item() == pytest.approx(2, rel=1e-5)
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
