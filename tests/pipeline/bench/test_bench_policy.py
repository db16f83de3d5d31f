import json
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_equality import assert_equal
from trained_policy import CLIPS, TASKS, demonstrations, small_extraction, small_recipe
from typer.testing import CliRunner

from pipeline.bench.full_size import (
    TEXT_MODEL,
    TOWER_MODEL,
    full_size_recipe,
    text_model,
    tower_model,
)
from pipeline.bench.policy import EncodersInTheLoop, bench_policy, choose_recipes
from pipeline.bench.policy_recipes import bench_policies
from pipeline.cli import app
from pipeline.config import RequestError, override
from pipeline.extract.live import LANGUAGE
from pipeline.extract.models import load_models
from pipeline.recipes import extract_recipe, vla_recipe
from pipeline.sources import open_source
from pipeline.train.policy_stores import PolicyStores
from stages.policy_table import FROZEN_PARAMETERS


def test_the_ratio_is_that_of_a_step_in_the_loop_to_one_on_cached_columns() -> None:
    recipe = small_recipe("tabletop_vla_3d")
    table = bench_policy(recipe, small_extraction(), size="tiny", moments=3, rounds=1, device="cpu").as_json()
    seconds = table["seconds"]
    cached = seconds["read"] + seconds["step"]
    live = seconds["step"] + seconds["frozen"] + seconds["text"]
    assert table["ratio"] == live / cached
    assert table["ratio_without_text"] == (live - seconds["text"]) / cached
    assert table["samples_per_s"] == {"cached": 3 / cached, "live": 3 / live}
    assert table["gflop"]["frozen"] > table["gflop"]["step"] > 0
    assert table["bytes_read"] > 0
    assert json.loads(json.dumps(table))["recipes"]["policy"]["train"]["batch"] == 3


def test_the_loop_makes_what_the_store_holds(tmp_path: Path) -> None:
    recipe = override(small_extraction(), ["store.image=png"])
    store = demonstrations(tmp_path / "store", recipe)
    source = open_source("tabletop", None, None, {"clips": str(CLIPS), "seed": "3", "tasks": TASKS})
    clips = {ref.key: source.read(ref, recipe.frames) for ref in source.clips()}
    stores = PolicyStores.open([store])
    columns = ["tokens", "cells", "points", "camera"]
    loop = EncodersInTheLoop(
        recipe, load_models(recipe, torch.device("cpu")), stores, clips, [*columns, LANGUAGE], torch.device("cpu")
    )
    moments = np.array([7, 0, 12])
    assert [record.role for record in loop.records] == ["concerto", "text"]
    made, stored = loop.see(moments), stores.batch(moments, columns)
    assert made is not None
    for name in columns:
        assert_equal(getattr(made.frames, name), getattr(stored, name), name)


def test_each_round_encodes_the_instructions_anew() -> None:
    recipe = small_extraction()
    text = load_models(recipe, torch.device("cpu")).text
    assert text is not None
    first = text.encode("push it")
    assert text.encode("push it") is first
    text.forget()
    again = text.encode("push it")
    assert again is not first
    assert torch.equal(again, first)


def test_only_the_models_that_run_are_named() -> None:
    recipe = override(extract_recipe("robot_tiny"), ["vision.towers=dinov2=random:0"])
    models = load_models(recipe, torch.device("cpu"))
    loop = EncodersInTheLoop(recipe, models, None, {}, ["vision/vggt", "language"], torch.device("cpu"))  # type: ignore[arg-type]
    assert {record.role for record in loop.records} == {"vggt", "text"}
    assert {record.role for record in models.records} > {"vggt", "text"}


def test_a_policy_of_pixels_has_nothing_to_compare() -> None:
    recipe, extraction = choose_recipes("tiny", "tabletop_act", "", ["model.language.channels=0"])
    with pytest.raises(RequestError, match="nothing to compare"):
        bench_policy(recipe, extraction, size="tiny", moments=1, rounds=1, device="cpu")


def test_an_override_goes_to_the_recipe_that_has_its_section() -> None:
    recipe, extraction = choose_recipes("tiny", "", "", ["points.count=512", "train.lr=0.1"])
    assert (recipe.name, recipe.train.lr) == ("tabletop_vla_3d", 0.1)
    assert (extraction.name, extraction.points.count) == ("rgbd_tiny", 512)


@pytest.mark.parametrize("wrong", [("huge", "", []), ("tiny", "vla_4d", []), ("tiny", "", ["pointts.count=1"])])
def test_an_unknown_name_is_a_wrong_request(wrong: tuple[str, str, list[str]]) -> None:
    with pytest.raises(RequestError, match=r"unknown|Unknown"):
        choose_recipes(wrong[0], wrong[1], "", wrong[2])


def test_full_size_is_that_of_the_released_models() -> None:
    with torch.device("meta"):
        models = {TEXT_MODEL: text_model(), TOWER_MODEL: tower_model()}
    for name, model in models.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == FROZEN_PARAMETERS[name]
    recipe = full_size_recipe(extract_recipe("robot_tiny"))
    assert (recipe.vggt.model, recipe.concerto.model) == ("vggt_1b", "base")
    assert recipe.vggt.weights == recipe.concerto.weights == "random:0"


def test_a_row_a_recipe_measured_in_a_process_of_its_own() -> None:
    table = bench_policies(moments=2, rounds=1, device="cpu", names=("tabletop_vla_3d",)).as_json()
    (row,) = table["rows"]
    model = vla_recipe("tabletop_vla_3d").build_checked("meta")
    assert row["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert row["frozen"] == FROZEN_PARAMETERS["builtin:concerto_tiny"]
    assert row["samples/s"] == 2 / row["s/step"]
    assert 0.1 < row["peak GB"] < 5
    assert any("tabletop_vla_3d" in note and "language" in note for note in table["notes"])


def test_all_takes_no_recipe() -> None:
    result = CliRunner().invoke(app, ["bench", "policy", "--all", "--recipe", "vla_3d"])
    assert result.exit_code == 2
    assert "--all measures every recipe" in result.stderr
