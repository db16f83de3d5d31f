import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robot_clips import ACTION, STATE, STEPS, robot_clip, trajectory
from store_factory import FORMATS

import pipeline.sources
from data_specs.batches import ImageBatch
from data_specs.records import BadClip, ClipRecord
from pipeline.config import RequestError, override
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.robot import chunk_actions
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import EXTRACT, extract_recipe
from pipeline.store import open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.pixels import decode_images

SMALL = ["frames.size=56", "points.count=256", "points.min_points=100", "robot.chunk=6", "max_bad_fraction=1"]
BALL = ["points.box_centre=0,0,0.1", "points.box_scale=4", "points.crop=0.3,0.3,0.2"]


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _robot_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.sources._SOURCES, "robot", "robot_clips:RobotSource")


def _request(out: Path, *changes: str, **more: Any) -> ExtractRequest:
    values: dict[str, Any] = {
        "dataset": "robot", "root": None, "split": None, "options": {}, "limit": None, "format": "zarr", "workers": 0,
        "device": "cpu", "recipe": override(extract_recipe("rgbd_tiny"), [*SMALL, *BALL, *changes]),
    }  # fmt: skip
    return ExtractRequest(out=str(out), **{**values, **more})


def test_chunks_are_the_control_steps_from_each_frame_on() -> None:
    way = replace(trajectory(), step=np.array([0, 3, STEPS - 1, STEPS]))
    chunk, is_pad = chunk_actions(way, 4)
    assert (chunk.dtype, chunk.shape, is_pad.shape) == (np.float32, (4, 4, ACTION), (4, 4))
    assert np.array_equal(chunk[1], way.action[3:7])
    assert is_pad.tolist() == [[False] * 4, [False] * 4, [False, True, True, True], [True] * 4]
    # past the end the last action stands
    assert (chunk[2] == way.action[-1]).all()
    assert (chunk[3] == way.action[-1]).all()


@pytest.mark.parametrize("step", [[-1], [STEPS + 1]])
def test_a_frame_outside_of_the_episode_is_refused(step: list[int]) -> None:
    with pytest.raises(ValueError, match=f"the episode has {STEPS}"):
        chunk_actions(replace(trajectory(), step=np.array(step)), 2)


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_store_keeps_chunks_and_statistics_of_every_control_step(tmp_path: Path, store_format: str) -> None:
    run_extract(_request(tmp_path / "s", format=store_format), _Quiet())
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True
    store = open_store(str(tmp_path / "s"))
    batch = store.batch(store.frames(1), columns=("extra/action_chunk", "extra/action_chunk_is_pad", "state"))
    way = robot_clip(size=56, seed=1).trajectory
    assert way is not None
    chunk, is_pad = chunk_actions(way, 6)
    assert np.array_equal(batch.extra["action_chunk"].numpy(), chunk)
    assert np.array_equal(batch.extra["action_chunk_is_pad"].numpy(), is_pad)
    assert batch.extra["action_chunk_is_pad"].dtype is torch.bool
    statistics = store.manifest.statistics
    assert statistics is not None
    assert (statistics["steps"], statistics["action"]["count"]) == ("control", 3 * STEPS)
    ways = [trajectory(seed) for seed in range(3)]
    for name, dims in (("state", STATE), ("action", ACTION)):
        values = np.concatenate([getattr(way, name) for way in ways]).astype(np.float64)
        assert len(statistics[name]["mean"]) == dims
        assert statistics[name]["std"] == pytest.approx(values.std(0))
        assert statistics[name]["q01"] == pytest.approx(np.quantile(values, 0.01, axis=0))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("dimension", r"action has shape \[3, 3\], the store keeps 2"),
        ("nan", "action is not finite at step 7"),
        ("steps", "control steps 11 to 19, the episode has 11"),
        ("none", "no control steps"),
    ],
)
def test_a_bad_episode_is_named_and_the_good_ones_are_kept(tmp_path: Path, spoil: str, reason: str) -> None:
    summary = run_extract(_request(tmp_path / "s", options={"spoil": spoil}), _Quiet())
    assert (summary.clips, [key for key, _ in summary.rejected]) == (2, ["robot-1"])
    assert re.search(reason, summary.rejected[0][1])
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True


def test_a_dataset_without_actions_is_told_so_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    with pytest.raises(RequestError, match=r"robot\.chunk=0"):
        run_extract(_request(tmp_path / "s", dataset="video", root=tmp_path / "v"), _Quiet())


def _mapped(*changes: str, frames: int = 3) -> ClipRecord:
    recipe = override(extract_recipe("rgbd_tiny"), [*SMALL, *BALL, *changes])
    return Mapper(recipe, load_models(recipe, torch.device("cpu")))(robot_clip(frames=frames))


@pytest.mark.parametrize("count", [256, 512])
def test_a_fixed_box_keeps_metres_and_only_what_is_inside(count: int) -> None:
    record = _mapped(f"points.count={count}")
    assert np.array_equal(record.camera.normalisation, np.tile(np.float32([0, 0, 0.1, 4]), (3, 1)))
    assert (np.abs(record.tokens.coord) <= np.float16([1.2, 1.2, 0.8]) + 1e-3).all()
    # cells begin at the corner of the box: a token's points are at most one coarse cell (0.32) apart
    for i in range(len(record)):
        rows = slice(record.tokens.offset[i], record.tokens.offset[i + 1])
        assert record.tokens.count[rows].astype(int).sum() == count
        cell = np.floor((record.tokens.coord[rows].astype(np.float64) + np.array([1.2, 1.2, 0.8])) / 0.32)
        assert len(np.unique(cell, axis=0)) == rows.stop - rows.start


def test_without_a_crop_points_outside_of_the_box_keep_the_cells_of_the_origin() -> None:
    record = _mapped("points.crop=0,0,0", "points.box_centre=5,0,0")
    assert record.tokens.coord[:, 0].max() < 0
    cell = np.floor(record.tokens.coord.astype(np.float64) / 0.32 + 1e-3)
    rows = slice(0, int(record.tokens.offset[1]))
    assert len(np.unique(cell[rows], axis=0)) >= 0.9 * (rows.stop - rows.start)


def test_a_box_beside_the_scene_says_which() -> None:
    with pytest.raises(BadClip, match=r"frame 0 has 0 usable points.*points\.crop=0\.3,0\.3,0\.2"):
        _mapped("points.box_centre=9,0,0")


def test_frames_of_a_live_recipe_do_not_depend_on_each_other() -> None:
    whole, first = _mapped(frames=3), _mapped(frames=1)
    end = int(whole.tokens.offset[1])
    assert whole.tokens.feat[:end].tobytes() == first.tokens.feat.tobytes()
    assert whole.points.depth[0].tobytes() == first.points.depth[0].tobytes()
    assert whole.camera.normalisation[0].tobytes() == first.camera.normalisation[0].tobytes()


@pytest.mark.parametrize(
    ("base", "changes", "sentence"),
    [
        ("tiny", ["robot.live=true"], "vggt_window lifts frames together"),
        ("tiny", ["robot.live=true", "geometry.source=vggt"], "fits a space to the whole clip"),
        ("rgbd_tiny", ["points.crop=0.1,0,0.1"], "three half sides above 0"),
        ("rgbd_tiny", ["points.box_centre=1,2"], r"points\.box_centre"),
        ("rgbd_tiny", ["points.box_centre=a,b,c"], r"points\.box_centre"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(base: str, changes: list[str], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        override(extract_recipe(base), changes)


@pytest.mark.parametrize("name", ["full", "small", "tiny"])
def test_recipes_from_before_the_robot_are_recorded_as_they_were(name: str) -> None:
    values = EXTRACT[name].recorded()
    assert "robot" not in values
    assert not {"box_centre", "box_scale", "crop"} & values["points"].keys()
    assert type(EXTRACT[name]).model_validate(values) == EXTRACT[name]
    changed = override(EXTRACT[name], ["robot.chunk=5"]).recorded()
    assert changed["robot"] == {"chunk": 5, "live": False}


def test_further_cameras_are_kept_at_their_own_resolution() -> None:
    recipe = override(extract_recipe("rgbd_tiny"), [*SMALL, *BALL, "store.image=png"])
    clip = robot_clip(frames=2)
    wrist = np.random.default_rng(0).integers(256, size=(2, 30, 40, 3), dtype=np.uint8)
    mapper = Mapper(recipe, load_models(recipe, torch.device("cpu")))
    record = mapper(replace(clip, views={"wrist": wrist}))
    images = ImageBatch(
        data=torch.from_numpy(record.views["wrist"].data), offset=torch.from_numpy(record.views["wrist"].offset)
    )
    assert np.array_equal(decode_images(images).numpy(), wrist)
    for views, reason in (({"a.b": wrist}, "camera 'a.b'"), ({"wrist": wrist[:1]}, r"expected uint8 \[2")):
        with pytest.raises(BadClip, match=reason):
            mapper(replace(clip, views=views))


def test_a_store_of_a_live_recipe_is_resumed(tmp_path: Path) -> None:
    run_extract(_request(tmp_path / "s"), _Quiet())
    assert StoreLayout.open(str(tmp_path / "s")).manifest.recipe["robot"]["chunk"] == 6
    summary = run_extract(_request(tmp_path / "s", mode="resume"), _Quiet())
    assert summary.tally.skipped_clips == 3
    with pytest.raises(RequestError, match=r"recipe\.robot\.chunk"):
        run_extract(_request(tmp_path / "s", "robot.chunk=7", mode="resume"), _Quiet())
