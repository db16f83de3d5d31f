"""Moments seen in a mirror."""

from dataclasses import replace

import pytest
import torch

from data_specs.batches import PolicyBatch
from data_specs.pointing import POINTING_NAME
from pipeline.config import RequestError, override
from pipeline.train.mirror import mirrored
from pipeline.train.vla_recipe import VLA_RECIPES
from stages.clouds import unpack_clouds
from stages.draw import Draw
from stages.points import camera_centre
from stages.rotations import axis_angle_to_matrix

MIRROR = torch.tensor([1.0, -1.0, 1.0])


def moments(size: int = 16) -> PolicyBatch:
    batch = PolicyBatch.example(size, points=64, horizon=5)
    pointing = torch.randn(size, 2, 4, generator=torch.Generator().manual_seed(1))
    return replace(batch, frames=replace(batch.frames, extra={POINTING_NAME: pointing}))


def whole(batch: PolicyBatch) -> PolicyBatch:
    return mirrored(batch, Draw.whole(len(batch)), share=1.0)


def test_points_cameras_and_targets_are_mirrored() -> None:
    batch = moments()
    after = whole(batch)
    before_cloud, after_cloud = (unpack_clouds(each.frames, width=224) for each in (batch, after))
    torch.testing.assert_close(after_cloud.xyz, before_cloud.xyz * MIRROR, atol=1e-5, rtol=1e-5)
    assert float(before_cloud.xyz[..., 1].abs().max()) > 0.01
    assert batch.frames.camera is not None and after.frames.camera is not None
    centre = camera_centre(batch.frames.camera.extrinsic)
    torch.testing.assert_close(camera_centre(after.frames.camera.extrinsic), centre * MIRROR, atol=1e-5, rtol=1e-5)
    before, seen = batch.frames.extra[POINTING_NAME], after.frames.extra[POINTING_NAME]
    assert torch.equal(seen[..., :3], before[..., :3] * MIRROR) and torch.equal(seen[..., 3], before[..., 3])


@pytest.mark.parametrize("of_state", [True, False])
def test_hands_and_turns_are_mirrored(of_state: bool) -> None:
    batch = moments()
    after = whole(batch)
    before_v, after_v = (each.need_state() if of_state else each.need_action()[0] for each in (batch, after))
    assert torch.equal(after_v[..., :3], before_v[..., :3] * MIRROR)
    mirror = torch.diag(MIRROR)
    turned = mirror @ axis_angle_to_matrix(before_v[..., 3:6]) @ mirror
    torch.testing.assert_close(axis_angle_to_matrix(after_v[..., 3:6]), turned, atol=1e-5, rtol=1e-5)
    assert torch.equal(after_v[..., 6:], before_v[..., 6:])


def test_a_mirror_in_a_mirror_shows_what_there_is() -> None:
    batch = moments()
    twice = whole(whole(batch))
    assert torch.equal(twice.need_state(), batch.need_state())
    assert torch.equal(twice.need_action()[0], batch.need_action()[0])
    assert twice.frames.camera is not None and batch.frames.camera is not None
    assert torch.equal(twice.frames.camera.extrinsic, batch.frames.camera.extrinsic)


def test_half_of_the_moments_are_mirrored_and_the_others_are_not_touched() -> None:
    batch = moments(64)
    after = mirrored(batch, Draw.whole(64))
    changed = (after.need_state() != batch.need_state()).any(1)
    assert 16 < int(changed.sum()) < 48
    same = (after.need_action()[0] == batch.need_action()[0]).flatten(1).all(1)
    assert torch.equal(same, ~changed)
    assert after.frames.points is batch.frames.points


def test_a_step_cut_into_parts_mirrors_the_same_moments() -> None:
    batch = moments(4)
    parts = [mirrored(batch, Draw(3, 0, start=start, count=4, total=8)).need_state() for start in (0, 4)]
    both = mirrored(moments(8), Draw.whole(8, seed=3)).need_state()
    flips = [(part != batch.need_state()).any(1) for part in parts]
    assert torch.equal(torch.cat(flips), (both != moments(8).need_state()).any(1))


def test_without_actions_nothing_is_mirrored() -> None:
    latent = replace(moments(4), action=None, is_pad=None)
    assert mirrored(latent, Draw.whole(4)) is latent


def test_too_few_dimensions_are_refused() -> None:
    batch = replace(moments(2), action=torch.zeros(2, 5, 4))
    with pytest.raises(RequestError, match="there are 8 dimensions of the state and 4 of an action"):
        mirrored(batch, Draw.whole(2))


@pytest.mark.parametrize("recipe", ["tabletop_vla_simple", "vla_3d", "tabletop_act"])
def test_policies_that_see_more_than_points_are_not_mirrored(recipe: str) -> None:
    with pytest.raises(RequestError, match=r"set augment\.mirror=false"):
        override(VLA_RECIPES[recipe], ["augment.mirror=true"])
