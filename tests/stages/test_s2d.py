from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_specs.batches import TokenBatch
from stages.s2d import S2DConfig, SparseToDense, broadcast_points

SMALL = S2DConfig(channels=24, dim=32, heads=4, hidden=64)


def _tokens(lengths: tuple[int, ...], points: int = 8192, channels: int = 24, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    counts = [1 + torch.randint(n, (points - n,), generator=generator).bincount(minlength=n) for n in lengths]
    total = sum(lengths)
    return TokenBatch(
        feat=torch.randn(total, channels, generator=generator).half(),
        coord=(torch.rand(total, 3, generator=generator) * 2 - 1).half(),
        count=torch.cat(counts).int(),
        offset=torch.tensor((0, *lengths)).cumsum(0),
    )


def _model(config: S2DConfig = SMALL) -> SparseToDense:
    torch.manual_seed(1)
    model = SparseToDense(config)
    with torch.no_grad():  # as after training: queries of the size of what is added to them, attention not uniform
        model.queries.mul_(50)
        for name, parameter in model.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(2)
    return model


def _gradients(model: SparseToDense, tokens: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(tokens)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weight).sum().div(100).backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("coords", ["none", "keys", "both"])
def test_distinct_tokens_with_the_bias_equal_all_points(coords: str) -> None:
    model = _model(S2DConfig(channels=24, dim=32, heads=4, hidden=64, coords=coords))  # type: ignore[arg-type]
    tokens = _tokens((60, 7))
    points = broadcast_points(tokens)
    assert len(points.feat) == 2 * 8192
    with torch.no_grad():
        uniform = model(replace(points, feat=points.feat.mean(0, keepdim=True).expand_as(points.feat)))
        assert (model(points) - uniform).abs().max() > 0.1  # there is something to attend to
    out, gradients = _gradients(model, tokens)
    # float64 for the sum over 8,192: in float32 that is off by up to 1e-4 itself, the one over the tokens is not
    out_points, gradients_points = _gradients(model.double(), points)
    torch.testing.assert_close(out.double(), out_points, atol=1e-5, rtol=0)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0 or name.endswith("key.bias"), name
        torch.testing.assert_close(gradient.double(), gradients_points[name], atol=1e-5, rtol=0)


def test_without_the_bias_they_would_not_be_equal() -> None:
    model, tokens = _model(), _tokens((60,), points=8192)
    uneven = tokens.count.clone()
    uneven[0] = 4000
    weighted = TokenBatch(feat=tokens.feat, coord=tokens.coord, count=uneven, offset=tokens.offset)
    assert (model(tokens) - model(weighted)).abs().max() > 1e-2


def test_full_size_is_equal_too_and_has_6_4_million_parameters() -> None:
    model = SparseToDense(S2DConfig())
    assert sum(p.numel() for p in model.parameters()) == 6_420_480
    tokens = _tokens((120,), channels=512)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), model(broadcast_points(tokens)), atol=1e-5, rtol=0)


def test_a_ragged_batch_equals_its_frames_one_by_one() -> None:
    model, lengths = _model(), (5, 90, 1, 33)
    batch = _tokens(lengths, points=500)
    together = model(batch)
    assert together.shape == (4, 14, 14, 32)
    for i in range(len(lengths)):
        start, stop = batch.offset[i], batch.offset[i + 1]
        one = TokenBatch(
            feat=batch.feat[start:stop],
            coord=batch.coord[start:stop],
            count=batch.count[start:stop],
            offset=torch.tensor([0, lengths[i]]),
        )
        torch.testing.assert_close(together[i : i + 1], model(one), atol=1e-5, rtol=0)


def test_the_order_of_the_tokens_does_not_matter() -> None:
    model, tokens = _model(), _tokens((40,))
    order = torch.randperm(40)
    shuffled = TokenBatch(
        feat=tokens.feat[order], coord=tokens.coord[order], count=tokens.count[order], offset=tokens.offset
    )
    torch.testing.assert_close(model(tokens), model(shuffled), atol=1e-5, rtol=0)


def test_coordinates_change_the_output_only_where_asked() -> None:
    tokens = _tokens((30,))
    moved = TokenBatch(feat=tokens.feat, coord=-tokens.coord, count=tokens.count, offset=tokens.offset)
    plain = _model()
    placed = _model(S2DConfig(channels=24, dim=32, heads=4, hidden=64, coords="keys"))
    assert torch.equal(plain(tokens), plain(moved))
    assert not torch.allclose(placed(tokens), placed(moved), atol=1e-4)


@pytest.mark.parametrize("channels", [128, 896, 1088])
def test_other_feature_levels_fit(channels: int) -> None:
    model = SparseToDense(S2DConfig(channels=channels, dim=32, heads=4, hidden=64))
    assert model(_tokens((9, 4), channels=channels)).shape == (2, 14, 14, 32)
    with pytest.raises(ValueError, match=f"24 channels and S2D was built for {channels}"):
        model(_tokens((9,), channels=24))


def test_checkpointing_changes_nothing() -> None:
    tokens = _tokens((20, 11))
    kept = _gradients(_model(), tokens)
    again = _gradients(_model(S2DConfig(channels=24, dim=32, heads=4, hidden=64, checkpoint=True)), tokens)
    assert torch.equal(kept[0], again[0])
    assert all(torch.equal(kept[1][name], again[1][name]) for name in kept[1])


def test_it_runs_in_bfloat16_under_autocast() -> None:
    model, tokens = _model(), _tokens((50, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tokens)
    assert (rough.float() - model(tokens)).abs().mean() < 0.05


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="cannot be split into 5 heads"):
        SparseToDense(S2DConfig(channels=8, dim=32, heads=5))
