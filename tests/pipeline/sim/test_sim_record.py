import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_specs.datasets import FrameSampling
from pipeline.sim import rgbd, ssv2
from pipeline.sim.episode import demonstrate
from pipeline.sim.record import record
from pipeline.sim.tasks import TASKS, find_tasks
from pipeline.sources import open_source
from pipeline.sources.frames import pick_indices

EVERY = FrameSampling(fps=None, stride=1, max=0, size=240)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ssv2") / "data"
    record("ssv2", out, clips=1, seed=1, tasks="reach")
    return out


def test_ssv2_is_the_datasets_layout(recorded: Path) -> None:
    assert sorted(contents(recorded)) == [
        "20bn-something-something-v2/100001.webm",
        "labels/labels.json",
        "labels/test.json",
        "labels/train.json",
        "labels/validation.json",
    ]
    item = json.loads((recorded / "labels/train.json").read_text())[0]
    name = demonstrate(1, 0, find_tasks("reach")).scene.things[0].name
    assert item == {
        "id": "100001",
        "label": f"moving robot gripper closer to {name}",
        "template": "Moving [something] closer to [something]",
        "placeholders": ["robot gripper", name],
    }
    assert json.loads((recorded / "labels/labels.json").read_text()) == {"Moving something closer to something": "0"}
    with av.open(str(recorded / "20bn-something-something-v2/100001.webm")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.height, stream.average_rate) == ("vp9", 240, 12)


def test_ssv2_reads_back_as_what_was_seen(recorded: Path) -> None:
    source = open_source("ssv2", recorded)
    refs = source.clips()
    assert len(refs) == 1
    clip = source.read(refs[0], EVERY)
    episode = demonstrate(1, 0, find_tasks("reach"))
    np.testing.assert_allclose(np.diff(clip.time), 1 / 12, atol=2e-3)
    assert abs(clip.time[-1] - episode.seconds) < 1 / 12
    for i in (0, len(clip) - 1):
        seen = episode.picture(round(clip.time[i] * 12) / 12, "agent", 240, 320).rgb[:, 40:280]
        assert np.abs(seen.astype(int) - clip.rgb[i]).mean() < 4  # lossy, the same picture


def test_ssv2_gives_the_same_bytes_again(recorded: Path, tmp_path: Path) -> None:
    record("ssv2", tmp_path, clips=1, seed=1, tasks="reach")
    assert contents(tmp_path) == contents(recorded)


def test_ssv2_labels(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    entries = [(ssv2.split_of(i), {"id": ssv2.video_id(0, i), "label": "x"}) for i in range(20)]
    ssv2.write_labels(tmp_path, entries, TASKS)
    items = {split: json.loads((tmp_path / f"labels/{split}.json").read_text()) for split in ssv2.SPLITS}
    assert {split: len(its) for split, its in items.items()} == {"train": 16, "validation": 2, "test": 2}
    assert items["test"] == [{"id": "9"}, {"id": "19"}]
    classes = json.loads((tmp_path / "labels/labels.json").read_text())
    assert sorted(classes.values()) == ["0", "1", "2", "3", "4"]
    assert {task.template.replace("[something]", "something") for task in TASKS} == set(classes)


def test_a_stop_leaves_no_half_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = rgbd._write_png, []

    def stopped(path: Path, pixels: np.ndarray) -> None:
        calls.append(path)
        if len(calls) > 10:
            raise KeyboardInterrupt
        write(path, pixels)

    monkeypatch.setattr(rgbd, "_write_png", stopped)
    with pytest.raises(KeyboardInterrupt):
        record("rgbd", tmp_path / "out", clips=1, tasks="reach", size=16)
    assert not [p for p in (tmp_path / "out/clips").iterdir() if not p.name.startswith(".")]
    with pytest.raises(ValueError, match="was stopped"):
        open_source("tabletop", tmp_path / "out").clips()
    monkeypatch.setattr(rgbd, "_write_png", write)
    with pytest.raises(ValueError, match="--overwrite"):
        record("rgbd", tmp_path / "out", clips=1, tasks="reach", size=16)
    record("rgbd", tmp_path / "out", clips=1, tasks="reach", size=16, overwrite=True)
    assert [p.name for p in (tmp_path / "out/clips").iterdir()] == ["s0-000000-reach"]


def test_what_no_recorder_wrote_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        record("rgbd", tmp_path, clips=1, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="is a file"):
        record("rgbd", tmp_path / "thesis.tex", clips=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"data_format": "rbgd"}, "Did you mean 'rgbd'"),
        ({"clips": 0}, "clips of at least 1"),
        ({"seed": -1}, "seed of at least 0"),
        ({"tasks": "puck"}, "Unknown task"),
        ({"views": ("top",)}, "Unknown view"),
        ({"views": ("agent", "agent")}, "each view once"),
        ({"views": ("wrist",), "camera_motion": True}, "agent's view"),
        ({"data_format": "ssv2", "views": ("wrist",)}, "agent's view only"),
        ({"fps": 30.0}, "at most 20"),
        ({"fps": 0.0}, "above 0"),
        ({"data_format": "ssv2", "fps": 4.0}, "of its own"),
        ({"workers": 0}, "workers of at least 1"),
    ],
)
def test_wrong_requests(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        record(**{"data_format": "rgbd", "out": tmp_path / "new", **arguments})
    assert not (tmp_path / "new").exists()


def test_the_bytes_do_not_depend_on_the_processes(tmp_path: Path) -> None:
    more = {"fps": 3.0, "size": 16, "camera_motion": True, "distractors": True}
    for workers in (1, 2):
        record("rgbd", tmp_path / str(workers), clips=2, tasks="reach", workers=workers, **more)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_recording_says_how_it_was_seen(tmp_path: Path) -> None:
    def said(name: str, **more: object) -> tuple[dict[str, object], dict[str, object]]:
        record("rgbd", tmp_path / name, clips=1, tasks="reach", size=16, **more)
        clip = next((tmp_path / name / "clips").iterdir()) / "clip.json"
        return json.loads((tmp_path / name / "dataset.json").read_text()), json.loads(clip.read_text())

    plain_index, plain = said("plain")
    assert not {"camera_motion", "distractors", "action_sum"} & (plain_index.keys() | plain.keys())
    index, clip = said("seen", camera_motion=True, distractors=True, fps=5.0)
    assert (index["camera_motion"], index["distractors"], index["fps"], clip["fps"]) == (True, True, 5.0, 5.0)
    assert clip["camera_motion"] in ("orbit", "dolly", "handheld")
    assert clip["distractors"] and set(clip["distractors"]) <= set(clip["segments"])
    assert clip["time"] == plain["time"][::4]
    assert clip["action"] == plain["action"][::4]
    sums = np.cumsum([np.zeros(7), *np.array(plain["action"])], axis=0)[::4][: len(clip["time"])]
    np.testing.assert_allclose(clip["action_sum"], sums, atol=1e-5)


@pytest.mark.parametrize("fps", [20.0, 12.0, 8.0, 3.0])
def test_the_moments_seen_are_those_that_sampling_takes(fps: float) -> None:
    episode = demonstrate(1, 0, find_tasks("reach"))
    assert episode.moments(fps).tolist() == pick_indices(episode.time, FrameSampling(fps=fps, max=0))


def test_progress_is_called_for_each_clip(tmp_path: Path) -> None:
    calls: list[int] = []
    record("rgbd", tmp_path, clips=2, tasks="reach", size=16, progress=lambda: calls.append(1))
    assert len(calls) == 2


def test_the_command_line_pays_nothing_for_the_simulator() -> None:
    imports = "import sys, pipeline.sim.record, pipeline.sources.tabletop"
    code = f"{imports}; print({{'mujoco', 'av', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "set()"
