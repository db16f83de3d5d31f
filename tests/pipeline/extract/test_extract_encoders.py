"""Stores with language and image encoders, end to end over a made-up robot."""

import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robot_clips import robot_clip
from store_factory import FORMATS

import pipeline.sources
from data_specs.records import BadClip
from data_specs.shards import LANGUAGE
from pipeline.config import RequestError, override
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.partition import clips_per_shard
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, ExtractSummary, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe
from pipeline.store import open_store

SMALL = [
    "frames.size=56", "points.count=256", "points.min_points=100", "robot.chunk=6", "max_bad_fraction=1",
    "points.box_centre=0,0,0.1", "points.box_scale=4", "points.crop=0.3,0.3,0.2", "vision.towers=eye=random:2",
    "store.shard_mb=0.01",
]  # fmt: skip


class _Quiet(Reporter):
    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after

    def update(self, tally: Tally, total: int) -> None:
        if self.stop_after is not None and tally.clips >= self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _robot_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.sources._SOURCES, "robot", "robot_clips:RobotSource")


def _extract(out: Path, *changes: str, stop_after: int | None = None, **more: Any) -> ExtractSummary:
    values: dict[str, Any] = {
        "dataset": "robot", "root": None, "split": None, "options": {}, "limit": None, "format": "zarr", "workers": 0,
        "device": "cpu", "recipe": override(extract_recipe("rgbd_tiny"), [*SMALL, *changes]),
    }  # fmt: skip
    return run_extract(ExtractRequest(out=str(out), **{**values, **more}), _Quiet(stop_after))


def _same_bytes(one: Path, two: Path) -> bool:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    return all(filecmp.cmp(one / f, two / f, shallow=False) for f in files)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "reference"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pipeline.sources._SOURCES, "robot", "robot_clips:RobotSource")
        summary = _extract(out)
    assert (summary.clips, summary.truncated) == (3, 0)
    return out


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_store_names_its_encoders_and_holds_what_they_say(tmp_path: Path, store_format: str) -> None:
    summary = _extract(tmp_path / "s", format=store_format)
    assert summary.random_models == ("text (random:0)", "vision/eye (random:2)")
    store = open_store(str(tmp_path / "s"))
    assert [model.role for model in store.manifest.models] == ["concerto", "text", "vision/eye"]
    assert store.batch([0, 4], columns=("vision/eye",)).vision["eye"].shape == (2, 16, 64)
    table = store.language()
    assert table is not None
    assert table.texts == ("lift the ball", "push the ball")
    assert table.batch([store.info(0).text]).feat.shape == (1, 3, 128)
    figures = inspect_store(str(tmp_path / "s"), verify=True)
    assert figures.verified is True
    assert figures.vision == {"eye": (16, 64)}
    assert figures.language is not None
    assert figures.language.instructions == 2


def test_formats_shards_and_workers_give_one_digest_and_one_language(reference: Path, tmp_path: Path) -> None:
    _extract(tmp_path / "t", "store.shard_mb=9", format="webdataset", workers=0)
    assert inspect_store(str(tmp_path / "t")).digest == inspect_store(str(reference)).digest
    assert (tmp_path / "t" / LANGUAGE).read_bytes() == (reference / LANGUAGE).read_bytes()


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_has_the_language_of_what_is_committed_and_is_resumed(
    reference: Path, tmp_path: Path, stop_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _extract(tmp_path / "s", stop_after=stop_after)
    partial = inspect_store(str(tmp_path / "s"), verify=True)
    assert partial.verified is True
    assert partial.clips < 3
    _extract(tmp_path / "s", mode="resume")
    assert _same_bytes(reference, tmp_path / "s")


def test_a_language_that_was_lost_is_made_again_and_one_that_is_there_is_kept(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _extract(tmp_path / "s")
    (tmp_path / "s" / LANGUAGE).write_bytes(b"damaged")
    _extract(tmp_path / "s", mode="resume")
    assert _same_bytes(reference, tmp_path / "s")

    def refuse(self: TextEncoder, text: str) -> torch.Tensor:
        raise AssertionError(f"{text!r} was encoded again")

    monkeypatch.setattr(TextEncoder, "encode", refuse)
    _extract(tmp_path / "s", mode="resume")
    assert _same_bytes(reference, tmp_path / "s")


def test_an_instruction_that_is_too_long_is_cut_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = _extract(tmp_path / "s", options={"spoil": "text"})
    assert (summary.clips, summary.truncated) == (3, 1)
    assert json.loads(json.dumps(summary.as_json()))["truncated_instructions"] == 1
    assert any("1 distinct instructions were longer" in line for line in summary.lines())
    assert "1 of 2 distinct instructions are longer than 77 tokens and were cut" in capsys.readouterr().err
    table = open_store(str(tmp_path / "s")).language()
    assert table is not None
    assert table.feat.shape[1] == 77
    assert table.truncated == (" ".join(["again"] * 200),)
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True


def _nan_for(text: str, encode: Callable[[TextEncoder, str], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def encoded(self: TextEncoder, asked: str) -> torch.Tensor:
        if asked == text:
            raise ValueError(f"the text encoder gives values that are not finite in float16 for {asked!r}")
        return encode(self, asked)

    return encoded


def test_a_clip_whose_instruction_cannot_be_read_is_rejected_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "encode", _nan_for("lift the ball", TextEncoder.encode))
    summary = _extract(tmp_path / "s")
    assert (summary.clips, [key for key, _ in summary.rejected]) == (2, ["robot-1"])
    assert "not finite in float16 for 'lift the ball'" in summary.rejected[0][1]
    assert inspect_store(str(tmp_path / "s"), verify=True).verified is True


def test_tokens_that_are_not_finite_reject_the_clip() -> None:
    recipe = override(extract_recipe("rgbd_tiny"), SMALL)
    models = load_models(recipe, torch.device("cpu"))
    models.towers["eye"].mean[1] = float("nan")
    with pytest.raises(BadClip, match="eye tokens that are not finite"):
        Mapper(recipe, models)(robot_clip(size=56))


def test_another_encoder_is_another_store(reference: Path) -> None:
    with pytest.raises(RequestError, match=r"recipe\.text\.weights"):
        _extract(reference, "text.weights=random:9", mode="resume")


def test_shards_make_room_for_image_encoders() -> None:
    recipe = extract_recipe("robot_full")
    with_towers = clips_per_shard(recipe, 512, 2 * (256 * 768 + 261 * 1024))
    assert with_towers < clips_per_shard(recipe, 512)
    assert clips_per_shard(recipe, 512, 0) == clips_per_shard(recipe, 512)


def test_robot_tiny_extracts_frames_without_depth(tmp_path: Path) -> None:
    recipe = override(
        extract_recipe("robot_tiny"), ["frames.size=56", "points.count=256", "points.min_points=100", "robot.chunk=4"]
    )
    _extract(tmp_path / "s", recipe=recipe, limit=1)
    store = open_store(str(tmp_path / "s"))
    assert [model.role for model in store.manifest.models] == ["vggt", "concerto", "text", "vision/dinov2"]
    vision = store.batch([0], columns=("vision/dinov2", "vision/vggt")).vision
    assert vision["dinov2"].shape == (1, 16, 64)
    assert vision["vggt"].shape[1] == 21
    assert np.isfinite(vision["vggt"].numpy()).all()
