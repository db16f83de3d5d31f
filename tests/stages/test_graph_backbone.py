from typing import Any

import pytest
import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from stages.backbones.base import Span, TokenSequence
from stages.backbones.graph import GraphBackbone, GraphConfig, Neighbours

DIM = 8


def _spans(size: int = 3, masked: bool = True) -> list[Span]:
    """Words, two views (one with special tokens, one with hidden cells), a state and queries."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int, rows: int = size) -> Tensor:
        return torch.randn(rows, count, DIM, generator=generator)

    words = torch.arange(6) < torch.tensor([[6], [2], [1]])
    cells = torch.rand(size, 12, generator=generator) > 0.4
    return [
        Span(name="language", tokens=tokens(6), mask=words if masked else None, order="chain"),
        Span(name="vggt", tokens=tokens(3 + 20), order=(4, 5)),
        Span(name="patch", tokens=tokens(12), mask=cells if masked else None, order=(3, 4)),
        Span(name="state", tokens=tokens(1)),
        Span(name="query", tokens=tokens(4, rows=1)),
    ]


def _adjacency(spans: list[Span], size: int, connectivity: int) -> Tensor:
    """The graph written out, [B,N,N]: 1 where token j is a neighbour of token i and real."""
    total = sum(len(span) for span in spans)
    joined, start = torch.zeros(size, total, total), 0
    for span in spans:
        if span.order == "chain":
            places = {i: (0, i) for i in range(len(span))}
        elif span.order is None:
            places = {}
        else:
            first = len(span) - span.order[0] * span.order[1]
            places = {first + i: divmod(i, span.order[1]) for i in range(len(span) - first)}
        for i, (row, column) in places.items():
            for j, (other_row, other_column) in places.items():
                down, right = abs(row - other_row), abs(column - other_column)
                near = down + right == 1 if connectivity == 4 else max(down, right) == 1
                if near:
                    joined[:, start + i, start + j] = 1 if span.mask is None else span.mask[:, j].float()
        start += len(span)
    return joined


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_the_mean_of_neighbours_is_that_of_the_adjacency_matrix(connectivity: Any, masked: bool) -> None:
    spans = _spans(masked=masked)
    x = TokenSequence(spans=spans).tokens(3)
    adjacency = _adjacency(spans, 3, connectivity)
    expected = adjacency @ x / adjacency.sum(-1, keepdim=True).clamp_min(1)
    found = Neighbours(spans, connectivity).mean(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not bool(found[:, 6:9].any()) and not bool(found[:, -5:].any())  # special tokens, state, queries: none
    assert bool((adjacency.sum(-1)[:, 9:29] >= (2 if connectivity == 4 else 3)).all())


def _run(model: GraphBackbone, spans: list[Span], size: int = 3) -> Tensor:
    return model(TokenSequence(spans=spans), PolicyBatch.example(size, images={}))


def _backbone(**changes: Any) -> GraphBackbone:
    torch.manual_seed(0)
    return GraphBackbone(GraphConfig(**{"dim": DIM, "depth": 2, "heads": 2, "hidden": 16, **changes}))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_layer_is_the_dense_formula(connectivity: Any) -> None:
    model, spans = _backbone(depth=1, connectivity=connectivity), _spans()
    layer: Any = model.layers[0]
    sequence = TokenSequence(spans=spans)
    x, seen = sequence.tokens(3), sequence.mask(3)
    assert seen is not None
    adjacency = _adjacency(spans, 3, connectivity)
    mean = adjacency @ layer.norm_graph(x) / adjacency.sum(-1, keepdim=True).clamp_min(1)
    x = x + mean @ layer.convolution.weight.T
    normed = layer.norm_attention(x)
    key, value = layer.attention.key_value(normed).chunk(2, dim=-1)
    heads = [layer.attention.split(part) for part in (layer.attention.query(normed), key, value)]
    logits = heads[0] @ heads[1].mT / (DIM / 2) ** 0.5
    logits = logits.masked_fill(~seen[:, None, None, :], -torch.inf)
    x = x + layer.attention.out((logits.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))
    x = x + layer.ffn(layer.norm_ffn(x))
    torch.testing.assert_close(_run(model, spans), model.norm(x), atol=1e-5, rtol=1e-5)


def test_hidden_tokens_change_nothing_that_is_seen() -> None:
    model, spans = _backbone(), _spans()
    seen = TokenSequence(spans=spans).mask(3)
    assert seen is not None
    changed = [
        span
        if span.mask is None
        else Span(name=span.name, tokens=span.tokens + 9 * ~span.mask[..., None], mask=span.mask, order=span.order)
        for span in spans
    ]
    before, after = _run(model, spans), _run(model, changed)
    assert not torch.allclose(before[~seen], after[~seen])
    torch.testing.assert_close(after[seen], before[seen], atol=1e-6, rtol=0)


def test_neighbours_matter() -> None:
    """Without attention's help, two layers carry a cell two steps and no further."""
    model = _backbone(depth=2)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.attention.out.weight)  # type: ignore[union-attr]
    grid = [Span(name="patch", tokens=torch.randn(1, 25, DIM), order=(5, 5))]
    moved = [Span(name="patch", tokens=grid[0].tokens.clone(), order=(5, 5))]
    moved[0].tokens[:, 12] += torch.randn(DIM)
    change = (_run(model, grid, 1) - _run(model, moved, 1)).abs().amax(-1).view(5, 5) > 1e-6
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    assert torch.equal(change, (rows - 2).abs() + (columns - 2).abs() <= 2)


def test_a_mask_of_a_part_covers_the_whole_sequence() -> None:
    sequence = TokenSequence(spans=_spans())
    mask = sequence.mask(3)
    assert mask is not None and mask.shape == (3, 46) and bool(mask[:, -5:].all())
    assert TokenSequence(spans=_spans(masked=False)).mask(3) is None
