"""What a GPU runs on a packed batch of clouds, against what a CPU runs: the same function in another form."""

import fpsample
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from concerto_clouds import batch, surface

import stages.concerto.sparse as sparse
from stages.concerto.attention import Patches, Segments, attention_runs, segments
from stages.concerto.geometry import sort_cloud
from stages.concerto.sparse import GatherTable, NeighbourTable
from stages.points import farthest_points

CPU = torch.device("cpu")


def _attend_each(where: Segments, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """What a variable-length kernel computes, patch by patch."""
    parts = []
    queries, keys = where.query_ends.tolist(), where.key_ends.tolist()
    for i in range(len(queries) - 1):
        rows = where.key_rows[keys[i] : keys[i + 1]]
        heads_first = (x.transpose(0, 1) for x in (q[queries[i] : queries[i + 1]], k[rows], v[rows]))
        parts.append(F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("lengths", [(5,), (16, 3, 40), (33, 64, 1, 17), (200,)])
def test_segments_are_the_same_patches_as_runs(lengths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=generator)
    where = segments(tuple(attention_runs(lengths, 16)), CPU)
    assert (where.query_ends.dtype, where.key_ends.dtype) == (torch.int32, torch.int32)
    assert int(where.query_ends[-1]) == sum(lengths)
    assert int(where.query_ends.diff().max()) == where.queries <= 16
    assert int(where.key_ends.diff().max()) == where.keys <= 16
    torch.testing.assert_close(
        _attend_each(where, q, k, v, 0.3), Patches(lengths, 16, CPU).attend(q, k, v, 0.3), atol=1e-6, rtol=1e-5
    )


def test_half_precision_on_a_gpu_goes_through_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(q, k, v, query_ends, key_ends, queries, keys, *, scale):  # type: ignore[no-untyped-def]
        calls.append((queries, keys))
        own = Segments(
            key_rows=torch.arange(len(k)), query_ends=query_ends, key_ends=key_ends, queries=queries, keys=keys
        )
        return _attend_each(own, q, k, v, scale)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    lengths = (40, 7, 16)
    patches = Patches(lengths, 16, CPU)
    patches.segments = segments(patches.runs, CPU)  # as on CUDA
    q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = patches.attend(q, k, v, 0.5)
    assert calls == [(16, 16)]
    expected = Patches(lengths, 16, CPU).attend(q.float(), k.float(), v.float(), 0.5)
    torch.testing.assert_close(together.float(), expected, atol=2e-2, rtol=2e-2)
    patches.attend(q.float(), k.float(), v.float(), 0.5)  # float32 has no such kernel
    assert len(calls) == 1


@pytest.mark.parametrize("at_a_time", [1 << 29, 27 * 5 * 100])
def test_gathering_all_neighbours_is_the_same_convolution(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_GATHERED", at_a_time)
    both = sort_cloud(batch([surface(0, 900, extent=18), surface(9, 300, extent=9)]))
    generator = torch.Generator().manual_seed(1)
    feat = torch.randn(len(both.key), 5, generator=generator)
    weight, bias = torch.randn(7, 3, 3, 3, 5, generator=generator) / 12, torch.randn(7, generator=generator)
    gathered = GatherTable(both.key).convolve(feat, weight, bias)
    torch.testing.assert_close(gathered, NeighbourTable(both.key).convolve(feat, weight, bias), atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = GatherTable(both.key).convolve(feat, weight, bias)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), gathered, atol=0.05, rtol=0.02)


def test_farthest_points_of_a_batch_are_those_of_each_cloud() -> None:
    generator = torch.Generator().manual_seed(3)
    xyz = torch.rand(3, 500, 3, generator=generator)
    valid = torch.rand(3, 500, generator=generator) > 0.3
    xyz[~valid] = torch.nan
    start = valid.long().argmax(1)
    picked = farthest_points(xyz, valid, start, 60)
    for i in range(3):
        candidates = torch.nonzero(valid[i]).squeeze(1)
        own = fpsample.fps_sampling(xyz[i, candidates].double().numpy(), 60, start_idx=0)
        assert torch.equal(picked[i], candidates[torch.from_numpy(own.astype(np.int64))])
