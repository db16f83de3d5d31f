"""What a policy sees live is, bit for bit, what a store gives of the same frames."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robot_clips import robot_clip, with_wrist
from store_factory import FORMATS

import pipeline.sources
from data_specs.batches import Batch, FrameBatch
from data_specs.records import BadClip
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.extract.clouds import single_frame
from pipeline.extract.live import LiveEncoder
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe
from pipeline.store import open_store
from pipeline.store.loader import Store

CPU = torch.device("cpu")
SMALL = ["frames.size=56", "points.count=256", "points.min_points=100", "robot.chunk=6"]
BOX = ["points.box_centre=0,0,0.1", "points.box_scale=4", "points.crop=0.3,0.3,0.2"]
SENSOR = override(extract_recipe("rgbd_tiny"), [*SMALL, *BOX, "vision.towers=eye=random:2", "vision.vggt=true",
                                                "vggt.weights=random:1", "vggt.model=tiny"])  # fmt: skip
LIFTED = override(extract_recipe("robot_tiny"), [*SMALL, "vggt.weights=random:1"])
PLAIN = ("tokens", "cells", "points", "camera", "rgb", "state", "views/wrist")
TEXTS = ("push the ball", "lift the ball")


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _robot_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.sources._SOURCES, "robot", "robot_clips:RobotSource")


def written(out: Path, recipe: ExtractRecipe, store_format: str) -> Store:
    request = ExtractRequest(
        dataset="robot", root=None, split=None, options={"views": "wrist"}, limit=None, out=str(out), recipe=recipe,
        workers=0, device="cpu", format=store_format,
    )  # type: ignore[arg-type]  # fmt: skip
    run_extract(request, _Quiet())
    return open_store(str(out))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Batch):
        for f in fields(value):
            yield from leaves(getattr(value, f.name), f"{name}.{f.name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}")
    elif value is not None:
        yield name, value


def assert_same_bits(found: FrameBatch, expected: FrameBatch) -> None:
    mine, theirs = dict(leaves(found)), dict(leaves(expected))
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - {".index"}:
        assert mine[name].dtype == theirs[name].dtype, name
        assert mine[name].shape == theirs[name].shape, name
        assert mine[name].numpy().tobytes() == theirs[name].numpy().tobytes(), name


@pytest.mark.parametrize("store_format", FORMATS)
@pytest.mark.parametrize("recipe", [SENSOR, LIFTED], ids=["sensor", "lifted"])
def test_live_frames_and_language_are_those_of_the_store_bit_for_bit(
    tmp_path: Path, recipe: ExtractRecipe, store_format: str
) -> None:
    store = written(tmp_path / "s", recipe, store_format)
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True
    columns = (*PLAIN, *(f"vision/{name}" for name in (*recipe.vision.named, "vggt")))
    assert set(columns) < set(store.columns())
    live = LiveEncoder.load(recipe, CPU, (*columns, "language"), records=store.manifest.models)
    clips = [with_wrist(robot_clip(f"robot-{i}", 3, 56, seed=i, text=TEXTS[i % 2])) for i in range(3)]
    # one observation at a time, and several slots at once, in another order than stored
    for frame, clip in ((0, 0), (2, 0), (1, 2)):
        found = live.frames([single_frame(clips[clip], frame)])
        assert_same_bits(found, store.batch([store.frames(clip)[frame]], columns))
    several = live.frames([single_frame(clips[i], 1) for i in (2, 0, 1)])
    assert_same_bits(several, store.batch([store.frames(i)[1] for i in (2, 0, 1)], columns))
    table = store.language()
    assert table is not None
    assert table.texts == tuple(sorted(TEXTS))
    for texts in (TEXTS, TEXTS[:1], (TEXTS[1],) * 3):
        mine, theirs = live.language(texts), table.batch(texts)
        assert mine.feat.numpy().tobytes() == theirs.feat.numpy().tobytes()
        assert torch.equal(mine.mask, theirs.mask)


@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        (("rgb", "state"), []),
        (("tokens", "state"), ["concerto"]),
        (("language",), ["text"]),
        (("vision/eye",), ["vision/eye"]),
        (("vision/vggt",), ["vggt"]),
    ],
)
def test_only_the_models_that_the_columns_need_are_loaded(columns: tuple[str, ...], roles: list[str]) -> None:
    live = LiveEncoder.load(SENSOR, CPU, columns)
    assert [record.role for record in live.models.records] == roles
    batch = live.frames([single_frame(robot_clip(size=56), 0)])
    given = {name.partition("/")[0] for name in columns} - {"language"}
    assert {
        name for name in ("tokens", "cells", "points", "camera", "rgb", "state") if getattr(batch, name) is not None
    } | ({"vision"} if batch.vision else set()) == given


def test_tokens_of_vggt_alone_are_those_beside_its_geometry() -> None:
    clip = single_frame(robot_clip(size=56), 0)
    alone = LiveEncoder.load(LIFTED, CPU, ("vision/vggt",)).frames([clip])
    beside = LiveEncoder.load(LIFTED, CPU, ("tokens", "vision/vggt")).frames([clip])
    assert alone.vision["vggt"].numpy().tobytes() == beside.vision["vggt"].numpy().tobytes()


@pytest.mark.parametrize(
    ("base", "changes", "columns", "sentence"),
    [
        ("tiny", [], ("tokens",), "cannot run live: geometry.source=vggt_window lifts frames together"),
        ("tiny", ["geometry.source=vggt"], ("camera",), "fits a space to the whole clip"),
        ("tiny", [], ("language",), "does not make the column 'language'"),
        ("rgbd_tiny", [], ("vision/dinov2",), "of encoders it has text"),
        ("rgbd_tiny", [], ("extra/action_chunk",), "is of a whole episode"),
        ("rgbd_tiny", [], ("tokns",), "Did you mean 'tokens'"),
    ],
)
def test_what_a_recipe_cannot_give_live_is_a_sentence(
    base: str, changes: list[str], columns: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        LiveEncoder.load(override(extract_recipe(base), changes), CPU, columns)


def test_pixels_need_no_single_frames() -> None:
    live = LiveEncoder.load(extract_recipe("tiny"), CPU, ("rgb",))
    assert live.models.records == ()


def test_other_weights_than_those_of_the_store_are_refused() -> None:
    stored = LiveEncoder.load(SENSOR, CPU, ("tokens", "language")).models.records
    other = override(SENSOR, ["concerto.weights=random:0"])
    with pytest.raises(RequestError, match=r"made with builtin:concerto_tiny.*as concerto, here is random:0"):
        LiveEncoder.load(other, CPU, ("tokens",), records=stored)
    with pytest.raises(RequestError, match="made with random:0 as text, not with random:5"):
        LiveEncoder.load(override(SENSOR, ["text.weights=random:5"]), CPU, ("language",), records=stored)
    with pytest.raises(RequestError, match="made with no such model as vision/eye"):
        LiveEncoder.load(SENSOR, CPU, ("vision/eye",), records=stored)


def test_an_observation_that_cannot_be_used_is_named() -> None:
    live = LiveEncoder.load(SENSOR, CPU, ("tokens", "state"))
    clip = robot_clip(size=56)
    good = single_frame(clip, 0)
    with pytest.raises(ValueError, match="has 3 frames, expected one"):
        live.frames([clip])
    with pytest.raises(BadClip, match="no sensor depth"):
        live.frames([replace(good, depth=None)])
    assert good.depth is not None
    with pytest.raises(BadClip, match="0 usable points"):
        live.frames([replace(good, depth=good.depth * 0)])
    with pytest.raises(ValueError, match="'state'"):
        live.frames([replace(good, state=None)])
    with pytest.raises(BadClip, match="state is not finite"):
        live.frames([replace(good, state=np.full((1, 3), np.nan, np.float32))])
    with pytest.raises(ValueError, match="no observations"):
        live.frames([])
