from dataclasses import replace

import pytest
import torch

from data_specs.batches import PolicyBatch
from pipeline.train.augment import augment, augmented
from pipeline.train.policy_sections import AugmentSection
from stages.draw import Draw

ALL = AugmentSection(shift=0.1, crop=0.2, brightness=0.3, contrast=0.3, saturation=0.3)


def pictures(size: int = 4, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.randint(256, (size, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def gradient() -> torch.Tensor:
    """A picture that gets brighter to the right, [1,40,40,3]."""
    return torch.arange(40).mul(6).to(torch.uint8)[None, None, :, None].expand(64, 40, 40, 3)


@pytest.mark.parametrize("name", ["shift", "crop", "brightness", "contrast", "saturation"])
def test_every_change_changes_and_keeps_shape_and_type(name: str) -> None:
    before = pictures()
    after = augment(before, AugmentSection(**{name: 0.2}), Draw.whole(4))
    assert after.shape == before.shape and after.dtype == torch.uint8
    assert not torch.equal(after, before)
    assert torch.equal(augment(before, AugmentSection(**{name: 0.2}), Draw.whole(4)), after)
    assert not torch.equal(augment(before, AugmentSection(**{name: 0.2}), Draw.whole(4, step=1)), after)


def test_without_amounts_pictures_stay_bit_for_bit() -> None:
    batch = PolicyBatch.example(images={"rgb": (20, 20)})
    assert augmented(batch, AugmentSection(), Draw.whole(2)) is batch
    assert torch.equal(augment(pictures(), AugmentSection(), Draw.whole(4)), pictures())


def test_a_shift_moves_by_whole_shares_of_the_side_at_most() -> None:
    after = augment(gradient(), AugmentSection(shift=0.1), Draw.whole(64))
    moved = (after[:, 20, 20, 0].float() - 120) / 6
    assert moved.abs().max() <= 4.1 and moved.max() > 2 and moved.min() < -2
    slope = after[:, 20, 25, 0].float() - after[:, 20, 15, 0].float()
    assert torch.allclose(slope, torch.full_like(slope, 60), atol=2)  # no zoom


def test_a_crop_shows_a_window_from_inside_the_picture() -> None:
    after = augment(gradient(), AugmentSection(crop=0.5), Draw.whole(64)).float()
    slope = (after[:, 20, 35, 0] - after[:, 20, 5, 0]) / (30 * 6)
    assert slope.min() >= 0.49 and slope.max() <= 1.01 and slope.min() < 0.6
    assert after.min() >= 0 and after.max() <= 39 * 6


def test_colours_change_as_named() -> None:
    grey = torch.full((16, 4, 4, 3), 100, dtype=torch.uint8)
    assert torch.equal(augment(grey, AugmentSection(saturation=0.5, contrast=0.5), Draw.whole(16)), grey)
    bright = augment(grey, AugmentSection(brightness=0.5), Draw.whole(16)).float()
    assert bright.min() >= 49 and bright.max() <= 151 and bright.std() > 10


def test_rows_do_not_depend_on_how_the_step_is_cut() -> None:
    whole = augment(pictures(), ALL, Draw.whole(4))
    halves = [
        augment(pictures()[start : start + 2], ALL, Draw(0, 0, start=start, count=2, total=4)) for start in (0, 2)
    ]
    assert torch.equal(torch.cat(halves), whole)


def test_cached_features_are_never_changed() -> None:
    batch = PolicyBatch.example(images={"rgb": (20, 20), "wrist": (12, 16)}, vision={"dinov2": (4, 8)})
    after = augmented(batch, ALL, Draw.whole(2))
    assert after.images["wrist"].shape == (2, 12, 16, 3)
    assert all(not torch.equal(after.images[name], batch.images[name]) for name in batch.images)
    assert after.frames is batch.frames and after.action is batch.action
    cached = replace(batch, images={})
    assert augmented(cached, ALL, Draw.whole(2)) is cached
