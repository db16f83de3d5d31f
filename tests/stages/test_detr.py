import pytest
import torch
from torch import nn

from stages.detr import (
    DecoderLayer,
    EncoderLayer,
    PositionedAttention,
    sine_positions_1d,
    sine_positions_of_picture,
)


def _as_torch(attention: PositionedAttention, dim: int, heads: int) -> nn.MultiheadAttention:
    """torch's own attention with the same weights."""
    other = nn.MultiheadAttention(dim, heads, batch_first=True)
    parts = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        other.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    other.out_proj.load_state_dict(attention.out.state_dict())
    return other


def test_attention_equals_torchs_also_with_hidden_tokens() -> None:
    torch.manual_seed(0)
    attention = PositionedAttention(16, 4, dropout=0.0)
    for part in (attention.query, attention.key, attention.value):
        nn.init.normal_(part.bias)
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    hidden = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    for mask in (None, hidden):
        expected, _ = _as_torch(attention, 16, 4)(query, key, value, key_padding_mask=mask)
        torch.testing.assert_close(attention(query, key, value, mask), expected)
    with pytest.raises(ValueError, match="cannot be split into 3 heads"):
        PositionedAttention(16, 3, dropout=0.0)


def test_an_encoder_layer_without_positions_equals_torchs() -> None:
    torch.manual_seed(0)
    layer, x = EncoderLayer(16, 4, 32, dropout=0.1).eval(), torch.randn(2, 5, 16)
    other = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    other.self_attn = _as_torch(layer.attention, 16, 4)
    other.linear1.load_state_dict(layer.ffn[0].state_dict())
    other.linear2.load_state_dict(layer.ffn[3].state_dict())
    torch.testing.assert_close(layer(x, torch.zeros(5, 16)), other(x))


def test_positions_are_for_queries_and_keys_only() -> None:
    torch.manual_seed(0)
    layer, x, positions = EncoderLayer(16, 4, 32, dropout=0.0), torch.randn(2, 5, 16), torch.randn(5, 16)
    assert not torch.allclose(layer(x, positions), layer(x, torch.zeros(5, 16)))
    one = x[:, :1]  # a token that sees itself alone: where it is makes no difference
    torch.testing.assert_close(layer(one, positions[:1]), layer(one, torch.zeros(1, 16)))


def test_a_decoder_layer_sees_its_memory_by_place() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(16, 4, 32, dropout=0.0)
    slots, memory, positions = torch.randn(3, 16), torch.randn(2, 5, 16), torch.randn(5, 16)
    out = layer(torch.zeros(2, 3, 16), slots, memory, positions)
    assert out.shape == (2, 3, 16)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(layer(torch.zeros(2, 3, 16), slots, memory[:, order], positions[order]), out)
    assert not torch.allclose(layer(torch.zeros(2, 3, 16), slots, memory[:, order], positions), out)


def test_dropout_is_of_training_only() -> None:
    torch.manual_seed(0)
    layer, x, positions = EncoderLayer(16, 4, 32, dropout=0.5), torch.randn(2, 5, 16), torch.zeros(5, 16)
    assert not torch.equal(layer(x, positions), layer(x, positions))
    layer.eval()
    assert torch.equal(layer(x, positions), layer(x, positions))


def test_positions_tell_steps_and_cells_apart_at_any_resolution() -> None:
    line = sine_positions_1d(102, 32)
    assert line.shape == (102, 32) and len(torch.unique(line, dim=0)) == 102
    small, large = sine_positions_of_picture(3, 5, 32), sine_positions_of_picture(6, 10, 32)
    assert small.shape == (15, 32) and len(torch.unique(small, dim=0)) == 15
    grid, fine = small.view(3, 5, 32), large.view(6, 10, 32)
    assert torch.equal(grid[1, 0, :16], grid[1, 4, :16]) and torch.equal(grid[0, 2, 16:], grid[2, 2, 16:])
    torch.testing.assert_close(grid, fine[1::2, 1::2])  # the far corner of each cell is where it was
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions_of_picture(3, 5, 30)
    with pytest.raises(ValueError, match="even width"):
        sine_positions_1d(4, 7)
