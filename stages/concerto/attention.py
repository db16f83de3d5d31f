"""Attention within the patches of a packed batch of clouds of different sizes.

Shapes: N rows of the batch in serialized order, M keys, H heads, D channels of a head, P patches of one run.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Attend:
    """A run of patches: `patches` times `queries` rows from `start` on attend to `keys` rows each, from `key_start`."""

    start: int
    key_start: int
    patches: int
    queries: int
    keys: int


def attention_runs(lengths: tuple[int, ...], patch_size: int) -> Iterator[Attend]:
    """The patches of clouds of `lengths` points, in serialized order.

    A cloud is cut into patches of K = min(its points, `patch_size`). PTv3 pads the last patch with the points before
    it, whose results there are dropped: in other words, the points left over attend to the last K points of the cloud.
    """
    start = 0
    for length in lengths:
        size = min(length, patch_size)
        whole, rest = divmod(length, size)
        yield Attend(start=start, key_start=start, patches=whole, queries=size, keys=size)
        if rest:
            end = start + length
            yield Attend(start=end - rest, key_start=end - size, patches=1, queries=rest, keys=size)
        start += length


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """All patches of a batch for one variable-length kernel.

    `key_rows` int64 [M] says which row each key is: those that the last patch of a cloud shares with the one before
    come twice. `query_ends`, `key_ends` int32 [P+1] begin with 0; `queries`, `keys` are the longest patch.
    """

    key_rows: Tensor
    query_ends: Tensor
    key_ends: Tensor
    queries: int
    keys: int


def segments(runs: tuple[Attend, ...], device: torch.device) -> Segments:
    """The same patches as `runs`."""
    queries = np.repeat([run.queries for run in runs], [run.patches for run in runs])
    keys = np.repeat([run.keys for run in runs], [run.patches for run in runs])
    rows = np.concatenate([np.arange(run.key_start, run.key_start + run.patches * run.keys) for run in runs])
    ends = (np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32) for sizes in (queries, keys))
    query_ends, key_ends = (torch.from_numpy(values).to(device) for values in ends)
    return Segments(
        key_rows=torch.from_numpy(rows).to(device),
        query_ends=query_ends,
        key_ends=key_ends,
        queries=int(queries.max()),
        keys=int(keys.max()),
    )


class Patches:
    """The patches of one level, cut once for all its blocks."""

    def __init__(self, lengths: tuple[int, ...], patch_size: int, device: torch.device) -> None:
        self.runs = tuple(attention_runs(lengths, patch_size))
        # One kernel for the batch where there is one; a CPU has no launches to save.
        self.segments = segments(self.runs, device) if device.type == "cuda" and _has_kernel() else None

    def attend(self, q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, scale: float) -> Tensor:
        """Softmax attention of each patch on its own: [N,H,D]."""
        if self.segments is not None and v_NHD.dtype in (torch.bfloat16, torch.float16):
            return _by_segments(self.segments, q_NHD, k_NHD, v_NHD, scale)
        parts = []
        for run in self.runs:
            rows = slice(run.start, run.start + run.patches * run.queries)
            keys = slice(run.key_start, run.key_start + run.patches * run.keys)
            out_PHKD = F.scaled_dot_product_attention(
                q_NHD[rows].view(run.patches, run.queries, *q_NHD.shape[1:]).transpose(1, 2),
                k_NHD[keys].view(run.patches, run.keys, *k_NHD.shape[1:]).transpose(1, 2),
                v_NHD[keys].view(run.patches, run.keys, *v_NHD.shape[1:]).transpose(1, 2),
                scale=scale,
            )
            parts.append(out_PHKD.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)


def _has_kernel() -> bool:
    """Whether this torch has the variable-length kernel (from 2.10 on); the runs compute the same without it."""
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _by_segments(where: Segments, q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out: Tensor = varlen_attn(  # type: ignore[assignment]
        q_NHD,
        k_NHD[where.key_rows],
        v_NHD[where.key_rows],
        where.query_ends,
        where.key_ends,
        where.queries,
        where.keys,
        scale=scale,
    )
    return out
