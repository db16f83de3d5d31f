import pytest
import torch

from stages.layers import Attention, Standardise, TransformerBlock, run, sine_positions_2d


def test_positions_tell_cells_apart_by_row_and_column() -> None:
    positions = sine_positions_2d(14, 64)
    assert positions.shape == (196, 64)
    assert len(torch.unique(positions, dim=0)) == 196
    grid = positions.view(14, 14, 64)
    assert torch.equal(grid[3, 1, :32], grid[3, 9, :32])  # half of the channels say the row
    assert torch.equal(grid[2, 5, 32:], grid[11, 5, 32:])
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions_2d(14, 30)


def test_attention_is_softmax_of_products() -> None:
    torch.manual_seed(0)
    attention, x, context = Attention(8, 2, context_dim=6), torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    query = attention.query(x).view(3, 5, 2, 4)
    key, value = (y.view(3, 7, 2, 4) for y in attention.key_value(context).chunk(2, -1))
    weight = torch.einsum("bqhd,bkhd->bhqk", query, key).div(2).softmax(-1)
    expected = attention.out(torch.einsum("bhqk,bkhd->bqhd", weight, value).flatten(2))
    torch.testing.assert_close(attention(x, context), expected)
    with pytest.raises(ValueError, match="cannot be split into 3 heads"):
        Attention(8, 3)


def test_a_block_sees_its_context_and_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    block, x, context = TransformerBlock(8, 2, 16, cross=True), torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    out = block(x, context)
    assert not torch.allclose(out, block(x, context + 1))
    gradients = []
    for checkpointed in (False, True):
        block.zero_grad()
        run(block, x, context, checkpointed=checkpointed).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    x = torch.randn(500, 6) * torch.tensor([1.0, 5, 100, 0.1, 1, 0]) + 7
    standardise = Standardise(6)
    assert torch.equal(standardise(x), x)
    standardise.set(x.mean(0), x.std(0))
    out = standardise(x)
    torch.testing.assert_close(out[:, :5].std(0), torch.ones(5), atol=1e-4, rtol=0)
    assert out[:, 5].abs().max() < 1  # a constant channel is not blown up
    torch.testing.assert_close(standardise.undo(out), x, atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="mean has shape"):
        standardise.set(torch.zeros(5), torch.ones(6))
    with pytest.raises(ValueError, match="deviation"):
        standardise.set(torch.zeros(6), torch.full((6,), torch.nan))
