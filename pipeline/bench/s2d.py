"""What attending to distinct tokens saves: S2D on N' tokens beside the same module on all 8,192 points."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from data_specs.batches import TokenBatch
from pipeline.bench.table import Table, columns_of, interleaved
from pipeline.config import RequestError
from pipeline.devices import choose_device
from stages.s2d import S2DConfig, SparseToDense, broadcast_points


def bench_s2d(
    *,
    tokens: Sequence[int] = (100, 500, 1800),
    points: int = 8192,
    frames: int = 2,
    rounds: int = 5,
    device: str = "auto",
) -> Table:
    """Seconds of forward and backward for each N', full sizes, and the ratio to `points` repeated keys.

    Both run the same module on the same features and must give the same output; the table has their difference.
    RequestError when N' is not between 1 and `points`.
    """
    if not tokens or not all(1 <= n <= points for n in tokens):
        raise RequestError(f"N' = {list(tokens)}: expected numbers of distinct tokens between 1 and {points:,}.")
    torch.manual_seed(0)
    place = choose_device(device)
    model = SparseToDense(S2DConfig()).to(place)
    rows: list[dict[str, Any]] = []
    for count in tokens:
        distinct = _frames(count, points, frames).to(place)
        repeated = broadcast_points(distinct)
        with torch.no_grad():
            difference = float((model(distinct) - model(repeated)).abs().max())
        seconds = interleaved(
            {"distinct": partial(_step, model, distinct), "repeated": partial(_step, model, repeated)}, rounds
        )
        rows.append(
            {
                "N'": count,
                "distinct ms/frame": seconds["distinct"] / frames * 1e3,
                f"{points:,} keys ms/frame": seconds["repeated"] / frames * 1e3,
                "ratio": seconds["repeated"] / seconds["distinct"],
                "difference": difference,
            }
        )
    columns, values = columns_of(rows)
    return Table(
        title=f"cla bench s2d: forward and backward, {frames} frames a batch, float32, {place}",
        columns=columns,
        rows=values,
        notes=("the features are frozen: no gradient goes back into them, in training and here",),
        figures={"ratio": {str(row["N'"]): row["ratio"] for row in rows}},
    )


def _frames(count: int, points: int, frames: int) -> TokenBatch:
    """Frames of `count` tokens each that share out `points` points at random, one at least to each."""
    generator = torch.Generator().manual_seed(count)
    shares = [
        1 + torch.randint(count, (points - count,), generator=generator).bincount(minlength=count)
        for _ in range(frames)
    ]
    return TokenBatch(
        feat=torch.randn(frames * count, S2DConfig().channels, generator=generator).half(),
        coord=torch.rand(frames * count, 3, generator=generator).half(),
        count=torch.cat(shares).int(),
        offset=torch.arange(frames + 1) * count,
    )


def _step(model: SparseToDense, tokens: TokenBatch) -> None:
    model.zero_grad(set_to_none=True)
    model(tokens).square().mean().backward()
    if tokens.feat.is_cuda:
        torch.cuda.synchronize()
