"""What runs in the models' stream asks the device for nothing: no sizes, no values, no constants sent anew."""

from typing import Any

import pytest
import torch
from concerto_clouds import batch, surface
from torch.utils._python_dispatch import TorchDispatchMode

from stages.concerto import TINY, ConcertoEncoder, build_concerto, init_random
from stages.concerto.sparse import GatherTable
from stages.points import farthest_points, turn_z_up
from stages.vggt import VGGT_TINY, VGGTEncoder, build_vggt
from stages.vggt import init_random as init_vggt

WAITS = (
    "aten._local_scalar_dense",  # .item(), bool(), int(), .tolist() of one value
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.lift_fresh",  # torch.tensor and new_tensor: sent from the host's memory
    "aten.bincount",
    "aten.equal",
)


class NoWaiting(TorchDispatchMode):
    """Raises for an operation for which the host would wait for a GPU, or a mask as an index."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        assert name not in WAITS, f"{func} makes the host wait"
        if name in ("aten.index", "aten.index_put", "aten.index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask makes the host wait"
        if name == "aten.repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None, "repeat_interleave asks for its size"
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_waits() -> None:
    values = torch.arange(4)
    for wait in (
        lambda: int(values[0]),
        lambda: values.tolist() and bool(values.sum() > 0),
        lambda: values[values > 1],
        lambda: torch.unique(values),
        lambda: torch.tensor([1.0]),
    ):
        with pytest.raises(AssertionError, match="wait"), NoWaiting():
            wait()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vggt_waits_for_nothing(dtype: str) -> None:
    model = build_vggt(VGGT_TINY)
    init_vggt(model, 0)
    encoder = VGGTEncoder(model, tokens=True)
    rgb = torch.rand(2, 3, 3, 56, 56)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        first = encoder.encode_windows(rgb)  # constants are sent once
        turn_z_up(first.extrinsic)
        with NoWaiting():
            again = encoder.encode_windows(rgb)
            encoder(rgb[0])
            turn_z_up(again.extrinsic)
    assert torch.equal(first.depth_map, again.depth_map)


def test_concerto_waits_for_nothing_once_the_batch_is_planned() -> None:
    model = build_concerto(TINY.to_dict())
    init_random(model, 0)
    encoder = ConcertoEncoder(model, 2)
    cloud = batch([surface(0, 900), surface(1, 60, extent=12)])
    plan = encoder.plan(**{name: cloud[name] for name in ("coord", "grid_coord", "offset")})
    color = (cloud["feat"][:, 3:6] * 255).to(torch.uint8)
    with NoWaiting():
        planned = encoder.encode(plan, coord=cloud["coord"], color=color)
        rows = encoder.rows(plan)
    at_once = encoder(coord=cloud["coord"], grid_coord=cloud["grid_coord"], offset=cloud["offset"], color=color)
    for name in ("feat", "coord", "inverse", "offset"):
        assert torch.equal(getattr(planned, name), getattr(at_once, name)), name
    assert torch.equal(rows.inverse, at_once.inverse)
    assert sum(rows.lengths) == len(at_once.feat)
    assert torch.equal(rows.start, torch.tensor([0, rows.lengths[0]]))


def test_a_gather_table_and_farthest_points_wait_for_nothing() -> None:
    xyz, valid = torch.rand(2, 300, 3), torch.rand(2, 300) > 0.2
    weight, bias = torch.rand(4, 3, 3, 3, 4), torch.rand(4)
    keys = torch.arange(0, 90, 3)
    with NoWaiting():
        GatherTable(keys).convolve(torch.rand(len(keys), 4), weight, bias)
        farthest_points(xyz, valid, torch.zeros(2, dtype=torch.int64), 40)
