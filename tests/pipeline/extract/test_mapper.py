from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clip_factory import moving_ball

from data_specs.records import BadClip, ClipRecord
from pipeline.config import ExtractRecipe, override
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import FrozenModels, load_models
from pipeline.recipes import extract_recipe
from stages.points import Voxels, subsample, voxelise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> ExtractRecipe:
    return override(extract_recipe("tiny"), ["points.count=2048", "points.min_points=500"])


@pytest.fixture(scope="module")
def models(recipe: ExtractRecipe) -> FrozenModels:
    return load_models(recipe, CPU)


def _sensor(recipe: ExtractRecipe, *more: str) -> ExtractRecipe:
    return override(recipe, ["geometry.source=sensor", *more])


def _arrays(record: ClipRecord) -> dict[str, Any]:
    return {
        f"{part}.{name}": value
        for part in ("tokens", "cells", "points", "camera", "rgb")
        for name, value in vars(getattr(record, part)).items()
    }


class _Spy(torch.nn.Module):
    """Stands before Concerto and keeps what goes in and comes out."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[tuple[dict[str, torch.Tensor], Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("plan", "rows"):
            return getattr(self.inner, name)
        return super().__getattr__(name)

    def encode(self, plan: Any, **inputs: torch.Tensor) -> Any:
        out = self.inner.encode(plan, **inputs)  # type: ignore[operator]
        self.calls.append((inputs, out))
        return out


@pytest.mark.parametrize("more", [(), ("points.normalise=scene",), ("points.per=frame", "points.sampling=voxel")])
def test_stored_rows_broadcast_to_the_dense_features_bit_for_bit(
    recipe: ExtractRecipe, models: FrozenModels, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    chosen: list[torch.Tensor] = []
    voxels: list[Voxels] = []

    def keep_chosen(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pixel, kept = subsample(*args, **kwargs)
        chosen.extend(own[:n] for own, n in zip(pixel, kept.tolist(), strict=True))
        return pixel, kept

    def keep_voxels(*args: Any, **kwargs: Any) -> Voxels:
        voxels.append(voxelise(*args, **kwargs))
        return voxels[-1]

    monkeypatch.setattr("pipeline.extract.clouds.subsample", keep_chosen)
    monkeypatch.setattr("pipeline.extract.clouds.voxelise", keep_voxels)
    spy = _Spy(models.concerto)
    record = Mapper(_sensor(recipe, *more), replace(models, concerto=spy))(moving_ball(frames=3))  # type: ignore[arg-type]
    ((_, out),) = spy.calls
    # the naive pipeline: every point takes the feature of its voxel's cell, [P, C] a frame
    (of_all,) = voxels
    feat_of_point = out.feat[out.inverse][of_all.inverse].half().view(len(record), 2048, -1)
    for i in range(len(record)):
        dense = {int(pixel): row for pixel, row in zip(chosen[i], feat_of_point[i].numpy(), strict=True)}
        rows = slice(record.tokens.offset[i], record.tokens.offset[i + 1])
        stored = np.repeat(record.tokens.feat[rows], record.tokens.count[rows].astype(np.int64), axis=0)
        assert stored.shape == (2048, models.channels)
        for pixel, row in zip(record.points.pixel[i], stored, strict=True):
            assert row.tobytes() == dense[int(pixel)].tobytes()


def test_counts_of_tokens_and_cells_sum_to_the_points_of_the_frame(recipe: ExtractRecipe, models: FrozenModels) -> None:
    record = Mapper(_sensor(recipe), models)(moving_ball(frames=recipe.batch.clouds + 1))
    for i in range(len(record)):
        rows = slice(record.tokens.offset[i], record.tokens.offset[i + 1])
        triplets = slice(record.cells.offset[i], record.cells.offset[i + 1])
        count = record.tokens.count[rows].astype(np.int64)
        assert count.sum() == 2048
        assert (count > 0).all()
        by_token = np.zeros(len(count), np.int64)
        np.add.at(by_token, record.cells.token[triplets], record.cells.count[triplets])
        assert np.array_equal(by_token, count)
        # and the cells are those of the points' pixels
        token = np.repeat(np.arange(len(count)), count)
        pixel = record.points.pixel[i].astype(np.int64)
        cell = pixel // 224 // 16 * 14 + pixel % 224 // 16
        pairs, pair_count = np.unique(np.stack([cell, token], 1), axis=0, return_counts=True)
        assert np.array_equal(pairs[:, 0], record.cells.cell[triplets])
        assert np.array_equal(pairs[:, 1], record.cells.token[triplets])
        assert np.array_equal(pair_count, record.cells.count[triplets])


def test_points_are_sorted_by_token_and_pixel_and_carry_their_colour_and_depth(
    recipe: ExtractRecipe, models: FrozenModels
) -> None:
    clip = moving_ball()
    record = Mapper(_sensor(recipe), models)(clip)
    assert clip.depth is not None
    for i in range(len(record)):
        count = record.tokens.count[record.tokens.offset[i] : record.tokens.offset[i + 1]].astype(np.int64)
        pixel = record.points.pixel[i].astype(np.int64)
        order = np.repeat(np.arange(len(count)), count) * 224 * 224 + pixel
        assert (np.diff(order) > 0).all()
        assert np.array_equal(record.points.rgb[i], clip.rgb[i].reshape(-1, 3)[pixel])
        near, far = record.camera.range[i]
        depth = near + record.points.depth[i] / 65535 * (far - near)
        assert np.abs(depth - clip.depth[i].reshape(-1)[pixel]).max() <= (far - near) / 65535


def test_a_clip_gives_the_same_bytes_again_and_the_same_numbers_with_other_frames_around(
    recipe: ExtractRecipe, models: FrozenModels
) -> None:
    mapper = Mapper(recipe, models)
    clip = moving_ball()
    first, second = _arrays(mapper(clip)), _arrays(mapper(clip))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    # frames on their own (geometry.source=vggt), alone and together
    single = Mapper(override(recipe, ["geometry.source=vggt", "points.per=frame"]), models)
    together = single(clip)
    alone = single(replace(clip, rgb=clip.rgb[1:2], time=clip.time[1:2]))
    rows = slice(together.tokens.offset[1], together.tokens.offset[2])
    assert rows.stop - rows.start == len(alone.tokens.feat)
    np.testing.assert_allclose(
        together.tokens.feat[rows].astype(np.float32), alone.tokens.feat.astype(np.float32), atol=2e-3
    )


def test_what_stands_still_keeps_its_points_and_its_rows(recipe: ExtractRecipe, models: FrozenModels) -> None:
    clip = moving_ball(frames=2)
    still = replace(clip, rgb=clip.rgb[[0, 0]], depth=None if clip.depth is None else clip.depth[[0, 0]])
    record = Mapper(_sensor(recipe), models)(still)
    assert np.array_equal(record.points.pixel[0], record.points.pixel[1])
    half = record.tokens.offset[1]
    np.testing.assert_allclose(
        record.tokens.feat[:half].astype(np.float32), record.tokens.feat[half:].astype(np.float32), atol=2e-3
    )


def test_too_few_points_are_padded_with_a_recorded_count_or_rejected(
    recipe: ExtractRecipe, models: FrozenModels
) -> None:
    clip = moving_ball(holes=224 * 224 - 1500)
    record = Mapper(_sensor(recipe), models)(clip)
    for i in range(len(record)):
        count = record.tokens.count[record.tokens.offset[i] : record.tokens.offset[i + 1]].astype(np.int64)
        assert count.sum() == 1500
        assert not record.points.pixel[i, 1500:].any()
        assert not record.points.rgb[i, 1500:].any()
    with pytest.raises(BadClip, match="1500 usable points, expected at least 2048"):
        Mapper(_sensor(recipe, "points.too_few=reject"), models)(clip)
    with pytest.raises(BadClip, match=r"points\.min_points=1600"):
        Mapper(_sensor(recipe, "points.min_points=1600"), models)(clip)


def test_geometry_that_cannot_be_used_is_a_reason_not_a_crash(recipe: ExtractRecipe, models: FrozenModels) -> None:
    clip = moving_ball()
    with pytest.raises(BadClip, match="no sensor depth"):
        Mapper(_sensor(recipe), models)(replace(clip, depth=None))
    assert clip.depth is not None
    empty = clip.depth.copy()
    empty[1] = np.nan
    with pytest.raises(BadClip, match="frame 1 has 0 usable points"):
        Mapper(_sensor(recipe), models)(replace(clip, depth=empty))
    flat = replace(clip, intrinsic=np.full((3, 3, 3), np.inf, np.float32))
    with pytest.raises(BadClip, match="intrinsic of frame 0"):
        Mapper(_sensor(recipe), models)(flat)


def test_a_field_of_view_of_zero_rejects_the_clip(recipe: ExtractRecipe, models: FrozenModels) -> None:
    broken = load_models(recipe, CPU)
    assert broken.vggt is not None
    head = broken.vggt.vggt.camera_head.pose_branch.fc2
    with torch.no_grad():
        head.bias[-2:] = -100.0  # ReLU makes it 0
    with pytest.raises(BadClip, match="intrinsic"):
        Mapper(recipe, broken)(moving_ball())


@pytest.mark.parametrize("sampling", ["random", "random_per_frame", "fps", "voxel"])
@pytest.mark.parametrize("normals", ["zeros", "depth"])
def test_every_option_of_the_points_runs(
    recipe: ExtractRecipe, models: FrozenModels, sampling: str, normals: str
) -> None:
    setting = _sensor(recipe, f"points.sampling={sampling}", f"points.normals={normals}", "points.count=1024")
    record = Mapper(setting, models)(moving_ball(frames=1))
    assert record.tokens.count.sum() == 1024
    assert np.isfinite(record.tokens.feat).all()
    assert np.ptp(record.tokens.feat.astype(np.float32), axis=0).max() > 0
