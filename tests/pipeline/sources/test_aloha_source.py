import io
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sim.aloha import RIGHT_ARM
from pipeline.sim.episode import demonstrate
from pipeline.sim.record import record
from pipeline.sim.tasks import find_tasks
from pipeline.sources import open_source
from pipeline.sources.base import Source

EVERY = FrameSampling(fps=None, max=0, size=16)
HZ = {"hz": "20"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aloha") / "data"
    record("aloha", out, clips=2, seed=3, tasks="pick", size=15)
    return out


@pytest.fixture
def root(recorded: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "data"))


def first_file(root: Path) -> Path:
    return root / "sim_tabletop_scripted/episode_0.hdf5"


def damaged(source: Source) -> str:
    """The reason of the first clip, which is bad; the other is read."""
    bad, good = source.clips()
    source.read(good, EVERY)
    with pytest.raises(BadClip) as caught:
        source.read(bad, EVERY)
    assert caught.value.key == "sim_tabletop_scripted/episode_0"
    return caught.value.reason


def test_the_file_is_alohas(recorded: Path) -> None:
    with h5py.File(first_file(recorded)) as file:
        assert file.attrs["sim"]
        steps = len(file["action"])
        images = file["observations/images"]
        assert sorted(images) == ["agent", "wrist"]
        for image in images.values():
            assert (image.dtype, image.shape, image.chunks) == (np.uint8, (steps, 15, 20, 3), (1, 15, 20, 3))
        for name in ("observations/qpos", "observations/qvel", "action"):
            assert (file[name].shape, file[name].dtype) == ((steps, 14), np.float32)
        np.testing.assert_array_equal(file["observations/qpos"][:, 7:], np.tile(np.float32(RIGHT_ARM), (steps, 1)))
        assert not file["observations/qvel"][:, 7:].any()
        gripper = file["action"][:, 6]
        assert set(np.unique(gripper)) == {0.0, 1.0}
        assert 0 <= file["observations/qpos"][:, 6].min() < file["observations/qpos"][:, 6].max() <= 1.001


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    perturb=st.sampled_from([0.0, 0.7]),
    fps=st.sampled_from([4.0, 7.0, None]),
    view=st.sampled_from(["agent", "wrist"]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, perturb: float, fps: float | None, view: str
) -> None:
    out = tmp_path_factory.mktemp("aloha") / "data"
    record("aloha", out, clips=1, seed=seed, tasks="reach", size=18, perturb=perturb)
    options = {**HZ, "view": view, "views": "agent,wrist", "instruction": "reach for it"}
    source = open_source("aloha", out, options=options)
    clip = source.read(source.clips()[0], FrameSampling(fps=fps, stride=3, size=18))
    episode = demonstrate(seed, 0, find_tasks("reach"), perturb=perturb)
    assert clip.text == "reach for it"
    at = np.rint(clip.time * 20).astype(int)
    assert not clip.is_pad.any()
    np.testing.assert_array_equal(clip.trajectory.step, at)
    np.testing.assert_array_equal(clip.trajectory.state[at], clip.state)
    np.testing.assert_array_equal(clip.trajectory.action[at], clip.action)
    assert len(clip.trajectory.action) == len(episode.action) - 1
    np.testing.assert_array_equal(clip.state[:, :3], episode.state[at, :3])
    np.testing.assert_allclose(clip.state[:, 6] * 0.04, episode.state[at, 6], atol=1e-4)
    for k, moment in enumerate(at):
        pictures = {v: episode.picture(moment / 20, v, 18, 24).rgb for v in ("agent", "wrist")}
        np.testing.assert_array_equal(clip.rgb[k], pictures[view][:, 3:21])
        for name, picture in pictures.items():
            np.testing.assert_array_equal(clip.views[name][k], picture)


def test_an_action_is_where_the_arm_is_sent(recorded: Path) -> None:
    """Following the recorded targets, and nothing else, the hand comes to where it was."""
    source = open_source("aloha", recorded, options=HZ)
    clip = source.read(source.clips()[0], EVERY)
    lag = np.linalg.norm(clip.trajectory.action[:-1, :3] - clip.trajectory.state[1:, :3], axis=1)
    assert lag.max() < 0.02  # the servo is behind by what it moves in 1/20 s, and no more
    still = np.linalg.norm(np.diff(clip.trajectory.action[:, :3], axis=0), axis=1) == 0
    assert lag[1:][still[:-1]].min() < 1e-3


def test_rates(recorded: Path) -> None:
    plain, slow = (open_source("aloha", recorded, options=options) for options in ({}, HZ))
    one, other = (source.read(source.clips()[0], EVERY) for source in (plain, slow))
    np.testing.assert_allclose(one.time * 50, other.time * 20)
    assert (one.trajectory.hz, other.trajectory.hz) == (50, 20)


def test_the_main_camera(root: Path) -> None:
    assert open_source("aloha", root)._chosen().main == "agent"
    for number in (0, 1):
        with h5py.File(root / f"sim_tabletop_scripted/episode_{number}.hdf5", "a") as file:
            file["observations/images"].move("wrist", "top")
    assert open_source("aloha", root)._chosen().main == "top"
    with pytest.raises(ValueError, match="choose from agent, top"):
        open_source("aloha", root, options={"view": "wrist"}).clips()


def test_whether_it_was_simulated(root: Path) -> None:
    with h5py.File(first_file(root), "a") as file:
        file.attrs["sim"] = False
    assert [dict(ref.extra)["sim"] for ref in open_source("aloha", root).clips()] == ["False", "True"]


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_jpeg_bytes(root: Path, channels: str) -> None:
    plain = open_source("aloha", root)
    before = plain.read(plain.clips()[0], EVERY)
    with h5py.File(first_file(root), "a") as file:
        images = file["observations/images"]
        for name in list(images):
            files = []
            for rgb in images[name]:
                stream = io.BytesIO()
                order = 1 if channels == "rgb" else -1
                Image.fromarray(np.ascontiguousarray(rgb[..., ::order])).save(stream, "JPEG", quality=95)
                files.append(stream.getvalue())
            longest = max(map(len, files))
            del images[name]
            images[name] = np.stack([np.frombuffer(f.ljust(longest, b"\0"), np.uint8) for f in files])
        file.attrs["compress"] = True
    source = open_source("aloha", first_file(root), options={"channels": channels})
    after = source.read(source.clips()[0], EVERY)
    assert np.abs(after.rgb.astype(int) - before.rgb).mean() < 8
    with h5py.File(first_file(root), "a") as file:
        file["observations/images/agent"][0] = 0
    with pytest.raises(BadClip, match=r"picture 0 of .*cannot be decoded"):
        source.read(source.clips()[0], EVERY)


@pytest.mark.parametrize("name", ["action", "observations/qpos", "observations/images/agent"])
def test_a_missing_key(root: Path, name: str) -> None:
    with h5py.File(first_file(root), "a") as file:
        del file[name]
    assert f"the file has no '{name}'" in damaged(open_source("aloha", root))


@pytest.mark.parametrize("name", ["action", "observations/qpos", "observations/images/agent"])
def test_arrays_that_differ_in_length(root: Path, name: str) -> None:
    with h5py.File(first_file(root), "a") as file:
        values = file[name][:-2]
        del file[name]
        file[name] = values
    assert "expected" in damaged(open_source("aloha", root))


def test_numbers_that_are_none(root: Path) -> None:
    with h5py.File(first_file(root), "a") as file:
        file["observations/qpos"][7, 3] = np.nan
    reason = damaged(open_source("aloha", root))
    assert f"{first_file(root)}: observations/qpos is nan at step 7, dimension 3" in reason


def test_truncated(root: Path) -> None:
    first_file(root).write_bytes(first_file(root).read_bytes()[:-5000])
    assert "copy or download it again" in damaged(open_source("aloha", root))


def test_damage_in_the_pictures_only(root: Path) -> None:
    with h5py.File(first_file(root), "a") as file:
        agent = file["observations/images/agent"][()]
        del file["observations/images/agent"]
        data = file.create_dataset("observations/images/agent", data=agent, chunks=(1, 15, 20, 3), fletcher32=True)
        place = data.id.get_chunk_info(0).byte_offset
    content = bytearray(first_file(root).read_bytes())
    content[place : place + 8] = b"damaged!"
    first_file(root).write_bytes(content)
    assert "truncated or damaged" in damaged(open_source("aloha", root))


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no HDF5 file"):
        open_source("aloha", tmp_path).clips()
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="no episode of ALOHA with pictures"):
        open_source("aloha", tmp_path).clips()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"hz": "0"}, "above 0"), ({"hz": "fast"}, "above 0"), ({"channels": "gbr"}, "choose from rgb, bgr")],
)
def test_wrong_options(tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source("aloha", tmp_path, options=options)


def test_a_copy_in_another_process_reads_the_same(recorded: Path) -> None:
    source = open_source("aloha", recorded, options={"views": "wrist"})
    ref = source.clips()[0]
    assert len(pickle.dumps(source)) < 2000
    again = pickle.loads(pickle.dumps(source)).read(ref, EVERY)
    np.testing.assert_array_equal(again.views["wrist"], source.read(ref, EVERY).views["wrist"])
