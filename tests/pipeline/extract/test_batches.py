"""Batches over clips: what is stored of a clip beside what it gives alone, and in bfloat16 beside float32.

The clip's own choices (pixels, voxels) follow from depth: from sensors they are the same bits in any batch, from VGGT
its last bits move a point over a voxel's face now and then.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clip_factory import moving_ball

from data_specs.datasets import ClipRef
from data_specs.records import BadClip, Clip, ClipRecord
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.extract.decoding import Decoded
from pipeline.extract.mapper import Mapper
from pipeline.extract.mapping import map_clips
from pipeline.extract.models import FrozenModels, compile_blocks, load_models
from pipeline.recipes import extract_recipe
from stages.vggt import VGGT_TINY, Block, build_vggt, init_random

CPU = torch.device("cpu")
SENSOR = ("geometry.source=sensor",)
VGGT = ("geometry.source=vggt_window", "geometry.window=2")


def _recipe(*more: str) -> ExtractRecipe:
    return override(extract_recipe("tiny"), ["points.count=1024", "points.min_points=500", *more])


@pytest.fixture(scope="module")
def models() -> FrozenModels:
    return load_models(_recipe(), CPU)


def _clips() -> list[Clip]:
    """Different clips of different lengths."""
    clips = [moving_ball(key=f"ball-{frames}", frames=frames) for frames in (3, 1, 2)]
    return [replace(clip, rgb=np.roll(clip.rgb, 40 * i, axis=2)) for i, clip in enumerate(clips)]


def _good(outcomes: Any) -> list[ClipRecord]:
    records = list(outcomes)
    assert all(isinstance(record, ClipRecord) for record in records)
    return records


def _difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Least cosine of two rows, and relative L2 of all."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosine.min()), float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.mark.parametrize("geometry", [SENSOR, VGGT])
def test_a_packed_batch_gives_what_each_clip_gives_alone(models: FrozenModels, geometry: tuple[str, ...]) -> None:
    together = _recipe(*geometry, "batch.clips=3", "batch.frames=6", "batch.clouds=5")
    packed = _good(Mapper(together, models).many(_clips()))
    alone = _good(Mapper(_recipe(*geometry), models).many([clip])[0] for clip in _clips())
    for one, other in zip(packed, alone, strict=True):
        assert np.array_equal(one.points.pixel[:, :1], other.points.pixel[:, :1]) or geometry == VGGT
        assert np.array_equal(one.rgb.data, other.rgb.data)
        if geometry == SENSOR:
            # all that is chosen is the same bits; features differ in their last ones, before they become float16
            for part in ("cells", "points", "camera"):
                for name, values in vars(getattr(one, part)).items():
                    assert np.array_equal(values, getattr(getattr(other, part), name)), (part, name)
            assert np.array_equal(one.tokens.count, other.tokens.count)
        else:
            scale = np.abs(other.camera.extrinsic).max()
            assert np.abs(one.camera.extrinsic - other.camera.extrinsic).max() < 1e-4 * scale
            assert np.abs(one.camera.range / other.camera.range - 1).max() < 1e-4
        assert len(one.tokens.feat) == len(other.tokens.feat)
        cosine, error = _difference(other.tokens.feat, one.tokens.feat)
        # a point that depth's last bits move over a voxel's face changes its cell: 0.9987 on a Xeon, none on an EPYC
        assert cosine > (0.9999 if geometry == SENSOR else 0.98), cosine
        assert error < (2e-3 if geometry == SENSOR else 2e-2), error


def test_the_same_batch_gives_the_same_bytes(models: FrozenModels) -> None:
    recipe = _recipe(*VGGT, "batch.clips=3", "batch.frames=6", "batch.clouds=5")
    one, other = (_good(Mapper(recipe, models).many(_clips())) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        for part in ("tokens", "cells", "points", "camera", "rgb"):
            for name, values in vars(getattr(a, part)).items():
                same = getattr(getattr(b, part), name)  # scales of int8 features: None for float16 ones
                assert (values is None) == (same is None), (part, name)
                assert values is None or values.tobytes() == same.tobytes(), (part, name)


def test_a_bad_clip_is_named_and_touches_no_other(models: FrozenModels) -> None:
    mapper = Mapper(_recipe(*SENSOR, "batch.clips=4", "batch.clouds=16"), models)
    clips = _clips()
    empty = moving_ball(key="empty", frames=2)
    assert empty.depth is not None
    empty.depth[1] = np.nan
    flat = replace(moving_ball(key="flat"), intrinsic=np.full((3, 3, 3), np.inf, np.float32))
    blind = replace(moving_ball(key="blind"), depth=None)
    outcomes = mapper.many([blind, clips[0], empty, flat, clips[1]])
    reasons = [str(outcome) for outcome in outcomes if isinstance(outcome, BadClip)]
    assert [reason.partition(" ")[0].strip(":") for reason in reasons] == ["blind", "empty", "flat"]
    assert "no sensor depth" in reasons[0]
    assert "frame 1 has 0 usable points" in reasons[1]
    assert "intrinsic of frame 0" in reasons[2]
    good = _good(outcome for outcome in outcomes if not isinstance(outcome, BadClip))
    for record, expected in zip(good, _good(mapper.many(clips[:2])), strict=True):
        assert np.array_equal(record.points.pixel, expected.points.pixel)
        assert np.array_equal(record.tokens.feat, expected.tokens.feat)
    assert [type(outcome) for outcome in mapper.many([empty])] == [BadClip]


def test_a_grid_too_fine_for_the_orders_is_a_reason(models: FrozenModels) -> None:
    with pytest.raises(BadClip, match=r"voxels of concerto\.grid=1e-05"):
        Mapper(_recipe(*SENSOR, "concerto.grid=0.00001"), models)(moving_ball(frames=1))


@pytest.mark.parametrize("geometry", [SENSOR, VGGT])
def test_bfloat16_features_stay_close_to_float32(geometry: tuple[str, ...]) -> None:
    clip = moving_ball(frames=2)
    half = ("vggt.dtype=bfloat16", "concerto.dtype=bfloat16")
    exact, rounded = (
        Mapper(recipe, load_models(recipe, CPU))(clip) for recipe in (_recipe(*geometry), _recipe(*geometry, *half))
    )
    assert np.isfinite(rounded.tokens.feat).all()
    depth = np.abs(rounded.camera.range / exact.camera.range - 1).max()
    assert depth < 0.02, depth
    if geometry == SENSOR:
        cosine, error = _difference(exact.tokens.feat, rounded.tokens.feat)
        assert 0 < error < 0.03, error
        assert cosine > 0.999, cosine


def test_weights_held_in_bfloat16_give_what_autocast_gives() -> None:
    recipe = _recipe(*VGGT, "vggt.dtype=bfloat16", "concerto.dtype=bfloat16")
    held, whole = load_models(recipe, CPU), load_models(_recipe(*VGGT), CPU)
    assert held.vggt is not None and held.concerto is not None
    dtypes = {parameter.dtype for parameter in held.vggt.vggt.aggregator.frame_blocks.parameters()}
    assert torch.bfloat16 in dtypes
    assert {parameter.dtype for parameter in held.vggt.vggt.depth_head.parameters()} == {torch.float32}
    one, other = (Mapper(recipe, models)(moving_ball(frames=2)) for models in (held, whole))
    assert np.array_equal(one.tokens.feat, other.tokens.feat)
    assert np.array_equal(one.points.depth, other.points.depth)


def test_a_clip_that_cannot_be_decoded_leaves_its_place_empty(models: FrozenModels) -> None:
    seen: list[list[str]] = []

    class Watched(Mapper):
        def begin(self, batch: Any) -> Any:
            seen.append([clip.key for clip in batch])
            return super().begin(batch)

    def decoded() -> Iterator[Decoded]:
        for i in range(5):
            clip = None if i == 1 else moving_ball(key=str(i), frames=1)
            reason = None if clip else "is torn"
            yield Decoded(ref=ClipRef(key=str(i)), clip=clip, reason=reason, seconds=0.5)

    recipe = _recipe(*SENSOR, "batch.clips=2")
    mapped = list(map_clips(Watched(recipe, models), decoded(), [2, 2, 1], {}))
    assert seen == [["0"], ["2", "3"], ["4"]]
    assert [(one.ref.key, one.reason) for one in mapped] == [
        ("0", None),
        ("1", "is torn"),
        ("2", None),
        ("3", None),
        ("4", None),
    ]
    assert [one.record.key for one in mapped if one.record] == ["0", "2", "3", "4"]


def test_frames_that_are_encoded_alone_are_not_batched() -> None:
    with pytest.raises(RequestError, match=r"batch\.clips=2"):
        override(extract_recipe("robot_tiny"), ["batch.clips=2"])


def test_blocks_are_compiled_by_recipe() -> None:
    for more, compiled in (((), False), (("vggt.compile=true",), True)):
        models = load_models(_recipe(*VGGT, *more), CPU)
        assert models.vggt is not None
        blocks = [module for module in models.vggt.vggt.modules() if isinstance(module, Block)]
        aggregator = set(models.vggt.vggt.aggregator.modules())
        for block in blocks:
            assert (block._compiled_call_impl is not None) == (compiled and block in aggregator)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_blocks_give_the_same_geometry() -> None:
    model = build_vggt(VGGT_TINY)
    init_random(model, 0)
    windows = [torch.rand(1, frames, 3, 56, 56) for frames in (2, 1)]
    with torch.inference_mode():
        plain = [model(window) for window in windows]
        compile_blocks(model)
        fused = [model(window) for window in windows]
    for one, other in zip(plain, fused, strict=True):
        for name in ("depth", "pose_enc"):
            torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-5)
