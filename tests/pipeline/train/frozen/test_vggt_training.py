"""The task that trains VGGT tiny: its stream of groups, its loss, and the file that it ships."""

import json
from pathlib import Path

import film_factory
import pytest
import torch
from safetensors import safe_open

from pipeline.config import override
from pipeline.train.frozen.vggt import GROUP, FilmsSection, Groups, VggtRecipe, VggtTask, film_path, make_films, ship
from pipeline.train.launch import TrainRequest, train
from pipeline.train.progress import SilentReporter
from pipeline.train.task import BatchPlan
from stages.vggt import build_vggt

FILMS = 10


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for index in range(FILMS):
        film_factory.wall_film(index).save(film_path(folder, index))
    return folder


def recipe(*changes: str) -> VggtRecipe:
    small = ("films.count=10", "train.workers=0", "train.validate_samples=1", "small_until=0", "train.ema=0")
    return override(VggtRecipe(), [*small, *changes])


def test_every_group_has_as_many_frames(films: Path) -> None:
    groups = [Groups({"standing": [film_path(films, 0)]}, recipe()).group(place) for place in range(24)]
    assert {group.windows.images.shape[1] for group in groups} == {1, 2, 4, 8}
    for group in groups:
        assert group.windows.images.shape[:2].numel() == GROUP
        assert len(group.dense) <= group.windows.images.shape[1]


def test_a_place_of_the_stream_is_the_same_group_whoever_takes_it(films: Path) -> None:
    task = VggtTask(recipe(), films)
    one = next(task.batches(BatchPlan(batch=2, start=4)))
    other = next(task.batches(BatchPlan(batch=1, start=5)))
    assert torch.equal(one.groups[1].windows.images, other.groups[0].windows.images)
    assert torch.equal(one.groups[1].dense, other.groups[0].dense)


def test_held_out_films_are_never_trained_on(films: Path) -> None:
    task = VggtTask(recipe("train.validate_samples=24"), films)
    held_out = {name for batch in task.validation_batches(0, 1) for name in task.keys(batch)}
    stream = task.batches(BatchPlan(batch=16))
    seen = {name for batch in (next(stream), next(stream)) for name in task.keys(batch)}
    assert held_out == {f"{index:05d}" for index in range(5)}
    assert seen == {f"{index:05d}" for index in range(5, 10)}


def test_the_first_frames_are_small(films: Path) -> None:
    task = VggtTask(recipe("small_until=0.5", "small_side=14", "train.steps=4"), films)
    stream = task.batches(BatchPlan(batch=1))
    assert [next(stream).groups[0].windows.images.shape[-1] for _ in range(4)] == [14, 14, 28, 28]


def test_training_learns_and_ships_what_it_learnt(films: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    task = VggtTask(recipe("train.steps=18", "train.warmup=2", "train.validate_every=18", "train.log_every=3"), films)
    train(task, TrainRequest(out=run, device="cpu"), SilentReporter())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if line["split"] == "train"]
    assert loss[-1] < 0.7 * loss[0]

    path = tmp_path / "vggt_tiny.safetensors"
    ship(run, path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "seed 1000" in about["trained"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    model = build_vggt(json.loads(about["config"]))
    model.load_state_dict(state, strict=True)
    with pytest.raises(ValueError, match="no point head"):
        model(torch.rand(1, 1, 3, 28, 28), ("point_map",))


def test_films_are_made_once(tmp_path: Path) -> None:
    section = FilmsSection(count=10, side=28)
    for index in range(9):
        film_factory.wall_film(index).save(film_path(tmp_path, index))
    before = film_path(tmp_path, 3).read_bytes()
    assert list(make_films(tmp_path, section)) == list(range(1, 11))
    assert film_path(tmp_path, 3).read_bytes() == before
