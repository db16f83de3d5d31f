"""What is foreseen is what an extraction then does; what is given is used; what is unknown is asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result
from video_factory import disc_video

from data_specs.datasets import FrameSampling
from data_specs.records import Clip
from pipeline.cli import app
from pipeline.config import RequestError, override
from pipeline.extract.mapper import Begun, Mapper
from pipeline.plan.counts import known_counts, mean_frames
from pipeline.plan.probe import batch_of, first_frames, generated_clip, models_for_probe
from pipeline.recipes import extract_recipe

SMALL = ["points.count=512", "points.min_points=100", "vggt.weights=random:0", "concerto.weights=random:0"]


def cla(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def plan(*arguments: str | Path) -> dict:
    result = cla("plan", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((2, 3, 4)):
        disc_video(root / f"{i}.mp4", seed=i, frames=frames)
    return root


def test_something_something_is_known_without_being_there() -> None:
    found = plan("--dataset", "ssv2", "--frames-per-clip", "2", "--frames-per-second", "10", "--deadline", "4")
    assert (found["clips"], found["frames"]) == (220_847, 441_694)
    assert found["device_hours"] == pytest.approx(441_694 / 10 / 3600)
    assert found["workers"] == 4  # 12.3 hours
    assert found["bytes"] == pytest.approx(441_694 * sum(found["bytes_per_frame_by_array"].values()))
    assert found["dense_bytes"] == 441_694 * 8192 * (2 * 512 + 12)
    assert not found["frames_per_s_measured"] and "nothing was run" in found["bytes_source"]


def test_splits_and_rates_change_the_counts() -> None:
    every = FrameSampling(fps=12.0, max=0)
    assert [known_counts("ssv2", split, every).clips for split in ("train", "val", "test")] == [168_913, 24_777, 27_157]
    assert known_counts("ssv2", None, every, limit=5).clips == 5
    assert known_counts("ssv2", None, every).frames_per_clip == pytest.approx(48, abs=0.5)  # 4 s, 12 a second
    assert mean_frames(FrameSampling(fps=None, stride=6, max=0), 12.0, (2.0, 2.0)) == 4
    assert mean_frames(FrameSampling(fps=4.0, max=16), 12.0, (6.0, 6.0)) == 16
    with pytest.raises(RequestError, match="choose from train"):
        known_counts("ssv2", "dev", every)


def test_tokens_that_are_known_decide_the_features() -> None:
    few, many = (
        plan("--dataset", "ssv2", "--frames-per-second", "1", "--tokens", n)["bytes_per_frame_by_array"]
        for n in ("70", "160")
    )
    assert (few["tokens/feat"], many["tokens/feat"]) == (70 * 1024, 160 * 1024)
    assert few["points/rgb"] == many["points/rgb"]


def test_what_is_foreseen_is_what_extraction_does(videos: Path, tmp_path: Path) -> None:
    where = ["--dataset", "video", "--root", videos, "--recipe", "tiny"]
    found = plan(*where, "--probe-seconds", "0.1", *SMALL)
    assert (found["clips"], found["frames"]) == (3, 9) and found["bad_fraction"] == 0
    assert found["frames_per_s"] > 0 and found["decoding_s_per_frame"] > 0
    assert found["random_weights"] == ["vggt (random:0)", "concerto (random:0)"]
    done = cla("extract", *where, "--out", tmp_path / "s", "--workers", "0", *SMALL)
    assert done.exit_code == 0, done.output
    store = json.loads(cla("inspect-shards", tmp_path / "s", "--json").stdout)
    assert store["frames"] == found["frames"]
    arrays, stored = found["bytes_per_frame_by_array"], store["bytes_per_frame_by_array"]
    names = [name for name in arrays if name != "headers and metadata"]
    assert set(names) == set(stored)
    assert sum(arrays[name] for name in names) == pytest.approx(sum(stored.values()), rel=0.15)
    assert not (tmp_path / "plan").exists()


def test_the_probe_maps_batches_as_an_extraction_does(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = generated_clip(extract_recipe("tiny"), 5)
    sizes = {room: (len(found), len(found[0])) for room in (1, 4, 9, 12, 99) if (found := batch_of(clip, 3, room=room))}
    assert sizes == {1: (1, 2), 4: (1, 4), 9: (1, 5), 12: (2, 5), 99: (3, 5)}

    given: list[tuple[int, int]] = []
    begin = Mapper.begin

    def watched(self: Mapper, batch: Sequence[Clip]) -> Begun:
        given.append((len(batch), len(batch[0])))
        return begin(self, batch)

    monkeypatch.setattr(Mapper, "begin", watched)
    where = ["--dataset", "video", "--root", videos, "--recipe", "tiny", *SMALL, "batch.clips=3", "batch.frames=8"]
    found = plan(*where, "--probe-seconds", "0.1")
    assert given[0] == (3, 2), "the first pass says how many frames there is time for"
    assert all(pair == (found["probe_clips"], found["probe_frames"]) for pair in given[1:]) and len(given) > 1
    text = cla("plan", *where, "--probe-seconds", "0.1", "batch.clips=8")  # 160 frames/s would have time for them
    assert "the recipe's batches have 8" in text.stdout


def test_text_names_the_numbers_and_the_deadline(videos: Path) -> None:
    result = cla("plan", "--dataset", "ssv2", "--frames-per-second", "30", "--deadline", "24", "--split", "train")
    assert result.exit_code == 0
    for words in ("168,913", "TB", "device-hours", "24 h: 1 worker", "tokens/feat"):
        assert words in result.stdout, words


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "video"], "needs --root"),
        (["--dataset", "ssv2", "--fps", "3", "--frames-per-clip", "2"], "give one of them"),
        (["--dataset", "ssv2", "--format", "npy"], "expected zarr or webdataset"),
        (["--dataset", "ssv2", "--split", "dev", "--frames-per-second", "1"], "choose from"),
    ],
)
def test_wrong_requests_are_answered(arguments: list[str], sentence: str) -> None:
    result = cla("plan", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_missing_weights_give_way_to_random_ones_of_the_same_sizes() -> None:
    import torch

    recipe = override(extract_recipe("tiny"), ["vggt.weights=/nowhere/model.safetensors"])
    changed, models = models_for_probe(recipe, torch.device("cpu"))
    assert changed.vggt.weights == changed.concerto.weights == "random:0"
    assert [record.random for record in models.records] == [True, True]
    assert models.channels == 128


def test_a_clip_is_cut_with_all_that_belongs_to_its_frames() -> None:
    clip = generated_clip(extract_recipe("rgbd_tiny"), 4)
    part = first_frames(clip, 2)
    assert len(clip) == 4 and len(part) == 2
    assert part.depth is not None and part.state is not None and part.trajectory is not None
    assert len(part.depth) == len(part.state) == len(part.trajectory.step) == 2
    assert all(len(array) == 2 for array in part.extra.values())
    np.testing.assert_array_equal(part.rgb, clip.rgb[:2])
    assert len(first_frames(clip, 9)) == 4
