"""Random weights: reproducible, and with a geometry that later rooms accept."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.vggt import VGGT_SMALL, VGGT_TINY, VGGTConfig, build_vggt, init_random

ALL = ("pose_enc", "extrinsic", "intrinsic", "depth", "depth_conf", "point_map", "point_conf", "last_tokens")


def varied_images() -> Tensor:
    """Noise, black, white, and two smooth ones: [5,1,3,112,112]."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(1, 3, 112, 112, generator=generator)
    smooth = F.interpolate(torch.rand(2, 3, 4, 4, generator=generator), size=(112, 112), mode="bicubic").clamp(0, 1)
    return torch.cat((noise, torch.zeros_like(noise), torch.ones_like(noise), smooth))[:, None]


@pytest.mark.parametrize(("config", "seeds"), [(VGGT_TINY, range(5)), (VGGT_SMALL, range(2))], ids=["tiny", "small"])
@torch.inference_mode()
def test_geometry_is_plausible_for_every_image_and_seed(config: VGGTConfig, seeds: range) -> None:
    for seed in seeds:
        model = build_vggt(config).eval()
        init_random(model, seed)
        out = model(varied_images(), ALL)
        for name in ALL:
            assert torch.isfinite(out[name]).all(), name
        view = out["pose_enc"][..., 7:].rad2deg()
        assert view.min() > 50 and view.max() < 70
        assert out["pose_enc"][..., :3].abs().max() < 0.3
        upright = out["pose_enc"].new_tensor([0.0, 0.0, 0.0, 1.0])
        assert (out["pose_enc"][..., 3:7] - upright).abs().max() < 0.3
        assert out["depth"].min() > 0.4 and out["depth"].max() < 2.5
        assert (out["depth"].flatten(1).std(1) > 0.02).all()
        assert (out["depth"][3] - out["depth"][4]).abs().mean() > 0.01
        assert out["depth_conf"].min() > 1.1
        assert out["depth_conf"].flatten(1).std(1).min() > 0.001


def test_only_seed_and_name_matter() -> None:
    torch.manual_seed(3)
    first = build_vggt(VGGT_TINY)
    init_random(first, 5)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    with torch.device("meta"):
        second = build_vggt(VGGT_TINY)
    init_random(second, 5)
    assert torch.equal(torch.get_rng_state(), state)
    third = build_vggt(VGGT_TINY)
    init_random(third, 6)
    # a deeper model has other parameters too, but those of the same name and shape are the same
    deeper = build_vggt(VGGTConfig.from_dict({**VGGT_TINY.to_dict(), "depth": 5}))
    init_random(deeper, 5)
    others, deep = third.state_dict(), deeper.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.equal(value, deep[name]), name
        if value.numel() > 9 and value.min() < value.max():  # not a constant
            assert not torch.equal(value, others[name]), name


def test_weights_are_the_same_on_every_machine() -> None:
    model = build_vggt(VGGT_TINY)
    init_random(model, 0)
    token = model.aggregator.camera_token.detach().flatten()[:3]
    torch.testing.assert_close(token, torch.tensor(EXPECTED_TOKEN), rtol=0, atol=0)
    assert token.abs().max() <= 0.02 * math.sqrt(3)


EXPECTED_TOKEN = [0.019197983667254448, -0.026636693626642227, 0.023533407598733902]


def test_parameters_of_other_dtypes_get_the_same_values_rounded() -> None:
    single, half = build_vggt(VGGT_TINY), build_vggt(VGGT_TINY).to(torch.bfloat16)
    init_random(single, 0)
    init_random(half, 0)
    rounded = single.to(torch.bfloat16).state_dict()
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value, rounded[name], msg=name)


@pytest.mark.slow
@torch.inference_mode()
def test_geometry_of_the_full_size_is_plausible() -> None:
    """5 GB of memory, some 20 s on two cores."""
    with torch.device("meta"):
        model = build_vggt({}).eval()
    init_random(model, 0)
    out = model(varied_images()[3:4])
    view = out["pose_enc"][..., 7:].rad2deg()
    assert view.min() > 50 and view.max() < 70
    assert out["depth"].min() > 0.4 and out["depth"].max() < 2.5
    assert out["depth"].std() > 0.02
