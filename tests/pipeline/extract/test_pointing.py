from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robot_clips import robot_clip
from store_factory import FORMATS

import pipeline.sources
from data_specs.datasets import FrameSampling
from data_specs.pointing import GOAL, POINTING_COLUMN, POINTING_NAME, THING
from data_specs.records import BadClip, Clip
from pipeline.config import RequestError, override
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import EXTRACT, extract_recipe
from pipeline.sim.episode import demonstrate
from pipeline.sim.tasks import find_tasks
from pipeline.sources import open_source
from pipeline.store import open_store

SEED, SIZE = 6, 224
SMALL = [f"frames.size={SIZE}", "points.count=4096", "points.min_points=100"]


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def _mapper(*changes: str) -> Mapper:
    recipe = override(extract_recipe("rgbd_tiny"), [*SMALL, *changes])
    return Mapper(recipe, load_models(recipe, torch.device("cpu")))


def _demonstration(task: str) -> Clip:
    source = open_source("tabletop", options={"clips": "1", "seed": str(SEED), "tasks": task})
    return source.read(source.clips()[0], FrameSampling(fps=5.0, max=0, size=SIZE))


def test_a_push_tells_where_the_thing_stood_and_where_it_is_brought() -> None:
    pointing = _mapper()(_demonstration("push")).extra[POINTING_NAME]
    world = demonstrate(SEED, 0, find_tasks("push")).world
    goal = world.position(0)
    world.reset()
    assert pointing.dtype == np.float32
    assert pointing[0, :, 3].tolist() == [1, 1]
    assert np.linalg.norm(pointing[0, THING, :2] - world.position(0)[:2]) < 0.025
    assert np.linalg.norm(pointing[0, GOAL, :2] - goal[:2]) < 0.025
    known = pointing[:, THING, 3] == 1
    assert 2 < known.sum() < len(known)
    assert (known[:-1] >= known[1:]).all()  # until it leaves
    assert not pointing[~known].any()


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_reach_is_kept_in_a_store_where_the_hand_ends(tmp_path: Path, store_format: Any) -> None:
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, options={"clips": "1", "seed": str(SEED), "tasks": "reach"},
        limit=None, out=str(tmp_path / "s"), recipe=override(extract_recipe("rgbd_tiny"), SMALL), workers=0,
        device="cpu", format=store_format,
    )  # fmt: skip
    run_extract(request, _Quiet())
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True
    store = open_store(str(tmp_path / "s"))
    pointing = store.batch(store.frames(0), columns=(POINTING_COLUMN,)).extra[POINTING_NAME]
    assert pointing.shape == (store.num_frames, 2, 4)
    assert (pointing[:, THING, 3] == 1).all()
    assert not pointing[:, GOAL].any()
    target = demonstrate(SEED, 0, find_tasks("reach")).world.position(0)
    assert np.linalg.norm(pointing[:, THING, :2].numpy() - target[:2], axis=1).max() < 0.02


def test_it_is_made_only_where_a_recipe_asks() -> None:
    assert POINTING_NAME not in _mapper("robot.pointing=false")(_demonstration("reach")).extra
    assert [name for name, recipe in EXTRACT.items() if recipe.robot.pointing] == ["rgbd_tiny"]
    recorded = override(extract_recipe("rgbd_tiny"), ["robot.pointing=false"]).recorded()
    assert recorded["robot"] == {"chunk": 20, "live": True}


def test_a_clip_without_a_hand_is_told_so() -> None:
    mapper = _mapper("robot.chunk=0", "points.box_centre=0,0,0.1", "points.crop=0.3,0.3,0.2")
    clip = robot_clip(size=SIZE)
    way = clip.trajectory
    assert way is not None
    assert POINTING_NAME in mapper(clip).extra
    for trajectory in (None, replace(way, state=way.state[:, :2])):
        with pytest.raises(BadClip, match=r"grip position.*robot\.pointing=false"):
            mapper(replace(clip, trajectory=trajectory))


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"robot\.pointing=true.*choose geometry\.source=sensor"):
        override(extract_recipe("robot_tiny"), ["robot.pointing=true"])
    monkeypatch.setitem(pipeline.sources._SOURCES, "handless", "robot_clips:RobotSource")
    monkeypatch.setattr(
        "robot_clips.RobotSource.spec", replace(pipeline.sources.open_source("handless").spec, state_dim=2)
    )
    request = ExtractRequest(
        dataset="handless", root=None, split=None, options={}, limit=None, out=str(tmp_path / "s"),
        recipe=override(extract_recipe("rgbd_tiny"), SMALL), workers=0, device="cpu", format="zarr",
    )  # fmt: skip
    with pytest.raises(RequestError, match=r"robot\.pointing=false"):
        run_extract(request, _Quiet())
    assert not (tmp_path / "s").exists()
