import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.sim.episode import demonstrate
from pipeline.sim.record import record
from pipeline.sources import open_source

SMALL = FrameSampling(size=48)
OPTIONS = {"clips": "2", "seed": "3", "tasks": "reach"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rgbd") / "data"
    record("rgbd", out, clips=2, seed=3, tasks="reach", views=("agent", "wrist"), size=48)
    return out


def digest(clip: Clip) -> str:
    sha = hashlib.sha256(f"{clip.key} {clip.split} {clip.text}".encode())
    arrays = {**vars(clip), **clip.extra, **clip.views}
    if clip.trajectory is not None:
        arrays |= {f"trajectory/{name}": value for name, value in vars(clip.trajectory).items()}
    for name, value in arrays.items():
        if isinstance(value, np.ndarray):
            sha.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return sha.hexdigest()


def test_listing() -> None:
    source = open_source("tabletop")
    refs = source.clips()
    assert len(refs) == 20
    assert [r.key for r in refs] == sorted(r.key for r in refs)
    assert refs[7].key == "s0-000007-pick"
    assert [r.key for r in open_source("tabletop", split="val").clips()] == ["s0-000009-place", "s0-000019-place"]
    assert len(open_source("tabletop", split="train").clips()) == 18


def test_a_generated_clip() -> None:
    source = open_source("tabletop", options={"seed": "2"})
    ref = source.clips()[1]
    clip = source.read(ref, SMALL)
    episode = demonstrate(2, 1)
    assert (clip.key, clip.text) == (ref.key, episode.scene.instruction)
    count = len(clip)
    np.testing.assert_array_equal(clip.time, np.arange(count) / 4)
    assert (clip.rgb.dtype, clip.rgb.shape) == (np.uint8, (count, 48, 48, 3))
    assert (clip.depth.dtype, clip.depth.shape) == (np.float32, (count, 48, 48))
    assert (clip.intrinsic.dtype, clip.intrinsic.shape) == (np.float32, (count, 3, 3))
    assert (clip.extrinsic.dtype, clip.extrinsic.shape) == (np.float32, (count, 3, 4))
    assert (clip.state.dtype, clip.state.shape) == (np.float32, (count, source.spec.state_dim))
    assert (clip.action.dtype, clip.action.shape) == (np.float32, (count, source.spec.action_dim))
    np.testing.assert_array_equal(clip.state, episode.state[::5][:count])
    np.testing.assert_array_equal(clip.action, episode.action[::5][:count])
    assert clip.is_pad.shape == (count,)
    assert (clip.extra["action_sum"].dtype, clip.extra["action_sum"].shape) == (np.float32, (count, 7))


@pytest.mark.parametrize(
    "frames", [SMALL, FrameSampling(fps=7, size=16), FrameSampling(fps=None, stride=3, max=0, size=16)]
)
def test_what_was_done_between_two_frames_is_a_difference_of_sums(frames: FrameSampling) -> None:
    source = open_source("tabletop", options={"seed": "2"})
    clip = source.read(source.clips()[1], frames)
    action = demonstrate(2, 1).action.astype(np.float64)
    at = np.rint(clip.time * 20).astype(int)
    total = clip.extra["action_sum"]
    assert not total[0].any()
    for i in range(len(clip) - 1):
        for j in range(i + 1, len(clip)):
            np.testing.assert_allclose(total[j] - total[i], action[at[i] : at[j]].sum(axis=0), atol=1e-5)


@pytest.mark.parametrize("perturb", ["0", "1"])
def test_the_trajectory_is_the_whole_episode(perturb: str) -> None:
    source = open_source("tabletop", options={"seed": "2", "perturb": perturb})
    episode = demonstrate(2, 1, perturb=float(perturb))
    clip = source.read(source.clips()[1], FrameSampling(fps=3, max=0, size=16))
    assert clip.trajectory.hz == 20
    np.testing.assert_array_equal(clip.trajectory.state, episode.state[:-1])
    np.testing.assert_array_equal(clip.trajectory.action, episode.action[:-1])
    np.testing.assert_allclose(clip.trajectory.step, clip.time * 20)
    assert clip.trajectory.step.dtype == np.int64
    for i, step in enumerate(clip.trajectory.step):
        np.testing.assert_array_equal(clip.state[i], episode.state[step])
        np.testing.assert_array_equal(clip.action[i], episode.action[step])


def test_noise_changes_what_is_done_and_keeps_what_was_wanted() -> None:
    still, noisy = (
        open_source("tabletop", options={**OPTIONS, "perturb": scale}).read(
            open_source("tabletop", options=OPTIONS).clips()[0], FrameSampling(fps=20, max=0, size=16)
        )
        for scale in ("0", "1")
    )
    done = np.diff(noisy.extra["action_sum"], axis=0)
    wanted = noisy.action[:-1]
    assert 0.005 < np.abs(done - wanted)[:, :3].mean() < 0.3
    np.testing.assert_allclose(done[:, [3, 4, 6]], wanted[:, [3, 4, 6]], atol=1e-5)  # neither tilted nor let go
    np.testing.assert_allclose(np.diff(still.extra["action_sum"], axis=0), still.action[:-1], atol=1e-5)
    assert noisy.text == still.text
    np.testing.assert_array_equal(noisy.state[0], still.state[0])


def test_further_views(root: Path) -> None:
    plain, more = (open_source("tabletop", options={**OPTIONS, **views}) for views in ({}, {"views": "wrist, agent"}))
    ref = plain.clips()[0]
    one, other = plain.read(ref, SMALL), more.read(ref, SMALL)
    assert list(other.views) == ["wrist", "agent"]
    np.testing.assert_array_equal(other.views["agent"], one.rgb)
    wrist = open_source("tabletop", options={**OPTIONS, "view": "wrist"}).read(ref, SMALL)
    np.testing.assert_array_equal(other.views["wrist"], wrist.rgb)
    assert not one.views
    recorded = open_source("tabletop", root, options={"views": "wrist,agent"})
    assert digest(recorded.read(recorded.clips()[0], SMALL)) == digest(other)
    assert recorded.read(recorded.clips()[0], FrameSampling(size=24)).views["wrist"].shape[1:] == (24, 24, 3)


@pytest.mark.parametrize("fps", [4, None])
def test_a_noisy_recording_equals_the_generated_clip(tmp_path: Path, fps: float | None) -> None:
    record("rgbd", tmp_path / "data", clips=1, seed=3, tasks="reach", size=48, fps=fps, perturb=0.8)
    assert json.loads((tmp_path / "data/dataset.json").read_text())["perturb"] == 0.8
    generated = open_source("tabletop", options={**OPTIONS, "perturb": "0.8"})
    recorded = open_source("tabletop", tmp_path / "data")
    assert digest(generated.read(generated.clips()[0], SMALL)) == digest(recorded.read(recorded.clips()[0], SMALL))


def test_a_recording_that_lacks_control_steps_has_no_trajectory(tmp_path: Path) -> None:
    record("rgbd", tmp_path / "data", clips=1, seed=3, tasks="reach", size=48, fps=4)
    source = open_source("tabletop", tmp_path / "data")
    ref = source.clips()[0]
    path = ref.path / "clip.json"
    clip = json.loads(path.read_text())
    whole = clip.pop("trajectory")
    path.write_text(json.dumps(clip))  # as recorded before there was one
    assert source.read(ref, SMALL).trajectory is None
    whole["step"][-1] = len(whole["state"]) + 1
    path.write_text(json.dumps({**clip, "trajectory": whole}))
    with pytest.raises(BadClip, match="trajectory steps"):
        source.read(ref, SMALL)


@pytest.mark.parametrize("view", ["agent", "wrist"])
@pytest.mark.parametrize("frames", [SMALL, FrameSampling(fps=None, stride=3, max=0, size=48)], ids=["fps", "stride"])
def test_recorded_equals_generated(root: Path, view: str, frames: FrameSampling) -> None:
    generated = open_source("tabletop", options={**OPTIONS, "view": view})
    recorded = open_source("tabletop", root, options={"view": view})
    pairs = list(zip(generated.clips(), recorded.clips(), strict=True))
    assert len(pairs) == 2
    for one, other in pairs:
        assert (one.key, one.split) == (other.key, other.split)
        assert digest(generated.read(one, frames)) == digest(recorded.read(other, frames))


@pytest.mark.parametrize("option", ["camera_motion", "distractors"])
def test_what_disturbs_changes_the_pictures_and_nothing_else(option: str) -> None:
    plain, disturbed = (open_source("tabletop", options={**OPTIONS, **more}) for more in ({}, {option: "true"}))
    ref = plain.clips()[1]
    assert disturbed.clips() == plain.clips()
    one, other = plain.read(ref, SMALL), disturbed.read(ref, SMALL)
    assert not np.array_equal(one.rgb, other.rgb)
    assert not np.array_equal(one.depth, other.depth)
    assert np.array_equal(one.extrinsic, other.extrinsic) == (option == "distractors")
    for name in ("time", "state", "action", "is_pad"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert np.array_equal(one.extra["action_sum"], other.extra["action_sum"])
    off = open_source("tabletop", options={**OPTIONS, option: "false"})
    assert digest(off.read(ref, SMALL)) == digest(one)


def test_a_recording_of_fewer_frames_equals_the_generated_clip(tmp_path: Path) -> None:
    disturbances = {"camera_motion": True, "distractors": True}
    record("rgbd", tmp_path / "data", clips=2, seed=3, tasks="reach", size=48, fps=4, **disturbances)
    generated = open_source("tabletop", options={**OPTIONS, **dict.fromkeys(disturbances, "true")})
    recorded = open_source("tabletop", tmp_path / "data")
    for one, other in zip(generated.clips(), recorded.clips(), strict=True):
        clip = recorded.read(other, SMALL)
        assert digest(generated.read(one, SMALL)) == digest(clip)
        assert len(list((tmp_path / "data/clips" / other.key / "agent/rgb").iterdir())) == len(clip)


def test_another_process_and_order_read_the_same_bytes() -> None:
    source = open_source("tabletop", options=OPTIONS)
    refs = source.clips()
    source.read(refs[0], SMALL)
    second = source.read(refs[1], SMALL)
    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1]); from test_tabletop_source import SMALL, digest\n"
        "source, ref = pickle.load(sys.stdin.buffer); print(digest(source.read(ref, SMALL)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        input=pickle.dumps((source, refs[1])),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == digest(second)


def test_another_size_is_cropped_with_its_camera(root: Path) -> None:
    source = open_source("tabletop", root)
    ref = source.clips()[0]
    full, half = source.read(ref, SMALL), source.read(ref, FrameSampling(size=24))
    assert half.rgb.shape[1:] == (24, 24, 3)
    assert half.depth.shape[1:] == (24, 24)
    np.testing.assert_allclose(half.intrinsic[:, 0, 0], full.intrinsic[:, 0, 0] / 2, rtol=1e-5)


def test_too_few_frames_are_bad_data() -> None:
    source = open_source("tabletop", options=OPTIONS)
    with pytest.raises(BadClip, match="expected at least 50"):
        source.read(source.clips()[0], FrameSampling(min=50, max=0, size=48))


@pytest.mark.parametrize("damage", ["missing_folder", "no_json", "bad_json", "short_state", "no_frame", "cut_frame"])
def test_damage_is_a_bad_clip(root: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    source = open_source("tabletop", copy)
    key = source.clips()[0].key
    folder = copy / "clips" / key
    frame = folder / "agent/depth/000000.png"
    if damage == "missing_folder":
        shutil.rmtree(folder)
    elif damage == "no_json":
        (folder / "clip.json").unlink()
    elif damage == "bad_json":
        (folder / "clip.json").write_text('{"time": [')
    elif damage == "short_state":
        clip = json.loads((folder / "clip.json").read_text())
        clip["state"].pop()
        (folder / "clip.json").write_text(json.dumps(clip))
    elif damage == "no_frame":
        frame.unlink()
    else:
        frame.write_bytes(frame.read_bytes()[:200])
    with pytest.raises(BadClip) as caught:
        source.read(source.clips()[0], SMALL)
    assert caught.value.key == key
    assert str(copy) not in caught.value.reason or damage != "missing_folder"
    source.read(source.clips()[1], SMALL)  # its neighbour is fine


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sede": "1"}, "Did you mean 'seed'"),
        ({"view": "agnet"}, "Did you mean 'agent'"),
        ({"clips": "0"}, "at least 1"),
        ({"seed": "x"}, "whole number"),
        ({"tasks": "juggle"}, "Unknown task"),
        ({"distractors": "yes"}, "true or false"),
        ({"perturb": "much"}, "number of at least 0"),
        ({"perturb": "-1"}, "number of at least 0"),
        ({"perturb": "nan"}, "number of at least 0"),
        ({"views": "wrist,wrist"}, "each view once"),
        ({"views": "wirst"}, "Did you mean 'wrist'"),
        ({"camera_motion": "true", "view": "wrist"}, "agent camera"),
    ],
)
def test_wrong_options(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source("tabletop", options=options)


def test_wrong_requests(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split"):
        open_source("tabletop", split="tset")
    with pytest.raises(ValueError, match="no option 'seed'"):
        open_source("tabletop", root, options={"seed": "1"})
    with pytest.raises(ValueError, match="holds no rgbd recording"):
        open_source("tabletop", tmp_path).clips()
    (tmp_path / "dataset.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not of format"):
        open_source("tabletop", tmp_path).clips()
