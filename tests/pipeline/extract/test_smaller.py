"""`tokens.dtype=int8` and `store.points=false`: what extraction writes, and that live observations equal it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_equality import assert_equal

from data_specs.quantise import quantise
from data_specs.records import Clip, ClipRecord
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.extract.clouds import single_frame
from pipeline.extract.live import LiveEncoder
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.recipes import extract_recipe
from pipeline.sources import open_source
from pipeline.store import open_store
from pipeline.store.verify import verify

CPU = torch.device("cpu")
SMALL = [
    "frames.size=56",
    "frames.max=2",
    "points.count=256",
    "points.min_points=100",
    "text.weights=",
    "robot.chunk=0",
]
BOTH = ["tokens.dtype=int8", "store.points=false"]
OPTIONS = {"clips": "1", "seed": "3"}


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def recipe(*more: str) -> ExtractRecipe:
    return override(extract_recipe("rgbd_tiny"), [*SMALL, *more])


@pytest.fixture(scope="module")
def clip() -> Clip:
    source = open_source("tabletop", None, None, OPTIONS)
    return source.read(source.clips()[0], recipe().frames)


@pytest.fixture(scope="module")
def exact(clip: Clip) -> ClipRecord:
    return Mapper(recipe(), load_models(recipe(), CPU))(clip)


def test_int8_is_the_exact_record_quantised(clip: Clip, exact: ClipRecord) -> None:
    found = Mapper(recipe("tokens.dtype=int8"), load_models(recipe(), CPU))(clip)
    feat, scale = quantise(exact.tokens.feat, exact.tokens.offset)
    np.testing.assert_array_equal(found.tokens.feat, feat)
    np.testing.assert_array_equal(found.tokens.scale, scale)
    np.testing.assert_array_equal(found.points.rgb, exact.points.rgb)


def test_without_points_all_else_is_the_same(clip: Clip, exact: ClipRecord) -> None:
    found = Mapper(recipe("store.points=false"), load_models(recipe(), CPU))(clip)
    assert found.points.pixel.shape == (2, 0) and found.points.rgb.shape == (2, 0, 3)
    for family in ("tokens", "cells", "camera"):
        for name, array in vars(getattr(exact, family)).items():
            np.testing.assert_array_equal(getattr(getattr(found, family), name), array)


def test_a_store_of_both_is_whole_and_equals_live_observations(clip: Clip, tmp_path: Path) -> None:
    asked = recipe(*BOTH)
    request = ExtractRequest(
        dataset="tabletop",
        root=None,
        split=None,
        options=OPTIONS,
        limit=None,
        out=str(tmp_path / "s"),
        format="zarr",
        recipe=asked,
        workers=0,
        device="cpu",
    )
    run_extract(request, _Quiet())
    store = open_store(str(tmp_path / "s"))
    assert verify(store.layout) == []
    assert store.manifest.sizes["P"] == 0 and store.manifest.recipe["tokens"] == {"dtype": "int8"}
    live = LiveEncoder.load(asked, CPU, columns=("tokens", "cells", "camera"))
    seen = live.frames([single_frame(clip, i) for i in range(2)])
    stored = store.batch([0, 1], ("tokens", "cells", "camera"))
    for name in ("tokens", "cells", "camera"):
        assert_equal(getattr(seen, name), getattr(stored, name), name)
    with pytest.raises(RequestError, match=r"these differ: .*recipe\.tokens"):
        run_extract(replace(request, mode="resume", recipe=recipe("store.points=false")), _Quiet())


def test_manifests_of_recipes_without_them_say_what_they_said_before() -> None:
    recorded = recipe().recorded()
    assert "tokens" not in recorded and "points" not in recorded["store"]
    assert recipe(*BOTH).recorded()["store"]["points"] is False
    with pytest.raises(RequestError, match=r"tokens\.dtype"):
        recipe("tokens.dtype=int4")
