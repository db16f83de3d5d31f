"""What VGGT promises beside its numbers: independence of neighbours, laziness, dtypes, and errors with a sentence."""

import pytest
import torch
from torch import Tensor

from stages.vggt import VGGT, VGGT_TINY, VGGTConfig, build_vggt, init_random
from stages.vggt.model import FRAMES_PER_CHUNK, OUTPUTS

SIDE = 56


@pytest.fixture(scope="module")
def model() -> VGGT:
    model = build_vggt(VGGT_TINY).eval()
    init_random(model, 0)
    return model


def images(clips: int, frames: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(clips, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", [1, 3])
@torch.inference_mode()
def test_a_clip_gives_the_same_alone_and_in_any_batch_and_order(model: VGGT, frames: int) -> None:
    batch = images(4, frames)
    together = model(batch, OUTPUTS)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(batch[order], OUTPUTS)
    for name in OUTPUTS:
        torch.testing.assert_close(shuffled[name], together[name][order], rtol=0, atol=1e-5, msg=name)
    for i in range(4):
        alone = model(batch[i : i + 1], OUTPUTS)
        for name in ("depth", "depth_conf", "point_map", "point_conf", "pose_enc", "extrinsic", "last_tokens"):
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=0, atol=1e-5, msg=name)
        # pixels: focal lengths are some hundred times larger than everything else
        torch.testing.assert_close(alone["intrinsic"][0], together["intrinsic"][i], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_frames_of_a_clip_see_each_other(model: VGGT) -> None:
    clip = images(1, 3)
    other = clip.clone()
    other[:, 2] = 1 - other[:, 2]
    difference = (model(clip)["depth"] - model(other)["depth"])[0, 0].abs().max()
    assert difference > 1e-4


@torch.inference_mode()
def test_dense_heads_give_the_same_over_the_edge_of_a_chunk(model: VGGT) -> None:
    batch = images(FRAMES_PER_CHUNK + 1)
    torch.testing.assert_close(model(batch)["depth"][-1], model(batch[-1:])["depth"][0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_two_runs_give_identical_bytes(model: VGGT) -> None:
    again = build_vggt(VGGT_TINY).eval()
    init_random(again, 0)
    first, second = model(images(2, 2), OUTPUTS), again(images(2, 2), OUTPUTS)
    for name in OUTPUTS:
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name


@pytest.mark.parametrize(
    ("want", "ran"),
    [
        (None, {"aggregator", "camera_head", "depth_head"}),
        (("depth",), {"aggregator", "depth_head"}),
        (("intrinsic",), {"aggregator", "camera_head"}),
        (("point_conf",), {"aggregator", "point_head"}),
        (("last_tokens",), {"aggregator"}),
    ],
)
@torch.inference_mode()
def test_only_what_is_wanted_runs(model: VGGT, want: tuple[str, ...] | None, ran: set[str]) -> None:
    seen: set[str] = set()
    hooks = [
        child.register_forward_hook(lambda *_, name=name: seen.add(name)) for name, child in model.named_children()
    ]
    try:
        out = model(images(1)) if want is None else model(images(1), want)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == ran
    assert set(out) == set(want or ("pose_enc", "extrinsic", "intrinsic", "depth", "depth_conf"))


@torch.inference_mode()
def test_no_block_runs_past_the_last_one_needed() -> None:
    config = VGGTConfig.from_dict({**VGGT_TINY.to_dict(), "dpt_layers": [0, 0, 1, 1]})
    model = build_vggt(config).eval()
    init_random(model, 0)
    ran: list[int] = []
    for i, block in enumerate(model.aggregator.frame_blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model(images(1), ("depth",))
    assert ran == [0, 1]


@pytest.mark.parametrize("view", [0.0, -1.0, float("nan"), float("inf")])
@torch.inference_mode()
def test_a_bad_field_of_view_is_no_crash_but_no_camera(view: float) -> None:
    model = build_vggt(VGGT_TINY).eval()
    init_random(model, 0)
    model.camera_head.pose_branch.fc2.weight.zero_()
    model.camera_head.pose_branch.fc2.bias[7:] = view
    out = model(images(2))
    assert not torch.isfinite(out["intrinsic"]).flatten(1).all(1).any()
    assert torch.isfinite(out["depth"]).all()


@torch.inference_mode()
def test_a_frame_that_is_not_finite_leaves_its_neighbours_alone(model: VGGT) -> None:
    batch = images(3)
    bad = batch.clone()
    bad[1] = float("nan")
    clean, out = model(batch), model(bad)
    assert not torch.isfinite(out["depth"][1]).any()
    torch.testing.assert_close(out["depth"][[0, 2]], clean["depth"][[0, 2]], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_under_bfloat16_autocast_the_heads_stay_float32(model: VGGT) -> None:
    reference = model(images(1, 2), OUTPUTS)
    dtypes: set[torch.dtype] = set()
    hook = model.aggregator.frame_blocks[0].mlp.fc1.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(images(1, 2), OUTPUTS)
    finally:
        hook.remove()
    assert dtypes == {torch.bfloat16}
    for name in OUTPUTS:
        if name != "last_tokens":
            assert out[name].dtype == torch.float32, name
    torch.testing.assert_close(out["depth"], reference["depth"], rtol=0.1, atol=0)


def test_gradients_reach_every_parameter_but_the_mask_token() -> None:
    model = build_vggt(VGGT_TINY)
    init_random(model, 0)
    sum(value.sum() for value in model(images(1, 2), OUTPUTS).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"depht": 4}, "unknown VGGT config key depht: the keys are img_size, .*dpt_layers"),
        ({"depth": "4"}, "depth is '4', expected something like 24"),
        ({"dpt_layers": 3}, "dpt_layers is 3"),
        ({"patch_embed": "resnet"}, "patch_embed is 'resnet', expected one of conv, dinov2_vits14_reg"),
        ({"embed_dim": 512}, "embed_dim is 512, dinov2_vitl14_reg needs 1024"),
        ({"depth": 4}, "dpt_layers .* from 0 to depth - 1 = 3"),
        ({"num_heads": 24}, "must be a multiple of 4"),
        ({"dpt_features": 20}, "of 8"),
        ({"img_size": 500}, "no multiple of patch_size"),
    ],
)
def test_a_wrong_config_is_named(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_vggt(config)


def test_a_config_survives_json() -> None:
    assert VGGTConfig.from_dict(VGGT_TINY.to_dict()) == VGGT_TINY


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 1, 3, 224, 220), "224x220 .* multiples of the patch size 14: .* 224x210"),
        ((1, 3, 224, 224), "expected \\[clips, frames, 3, height, width\\]"),
        ((1, 1, 4, 224, 224), "expected \\[clips, frames, 3, height, width\\]"),
        ((0, 1, 3, 224, 224), "expected \\[clips, frames, 3, height, width\\]"),
    ],
)
def test_wrong_images_are_named(model: VGGT, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model(torch.zeros(shape))


def test_bytes_are_not_taken_for_images(model: VGGT) -> None:
    with pytest.raises(ValueError, match="divide bytes by 255"):
        model(images(1).to(torch.uint8))


@pytest.mark.parametrize("want", [("depth", "normals"), ()])
def test_an_unknown_output_is_named(model: VGGT, want: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="choose from pose_enc, extrinsic"):
        model(images(1), want)
