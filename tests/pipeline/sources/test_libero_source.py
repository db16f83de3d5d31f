import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sim.episode import Episode, demonstrate
from pipeline.sim.record import record
from pipeline.sim.tasks import find_tasks
from pipeline.sources import open_source
from pipeline.sources.base import Source

EVERY = FrameSampling(fps=None, max=0, size=16)
SEED = 3


def episodes(count: int = 2, perturb: float = 0.0) -> list[Episode]:
    return [demonstrate(SEED, index, find_tasks("reach"), perturb=perturb) for index in range(count)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("libero") / "data"
    record("libero", out, clips=2, seed=SEED, tasks="reach", size=16)
    return out


@pytest.fixture
def root(recorded: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(recorded, tmp_path / "data"))


def first_file(root: Path) -> Path:
    return min(root.rglob("*.hdf5"))


def damaged(source: Source, frames: FrameSampling = EVERY) -> tuple[str, str]:
    """Key and reason of the one bad clip; the other is read."""
    bad = {}
    for ref in source.clips():
        try:
            source.read(ref, frames)
        except BadClip as error:
            bad[error.key] = error.reason
    assert len(bad) == 1
    assert len(source.clips()) == 2
    return next(iter(bad.items()))


def test_the_file_is_liberos(recorded: Path) -> None:
    shown = next(e for e in episodes() if first_file(recorded).stem == f"{'_'.join(e.scene.instruction.split())}_demo")
    steps = len(shown.action) - 1
    with h5py.File(first_file(recorded)) as file:
        data = file["data"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == shown.scene.instruction
        assert {"bddl_file_name", "env_args", "num_demos", "total"} <= set(data.attrs)
        assert (data.attrs["num_demos"], data.attrs["total"]) == (1, steps)
        shapes = {}
        data["demo_0"].visititems(lambda name, item: shapes.update({name: getattr(item, "shape", None)}))
        assert shapes.pop("states")[0] == steps
        assert shapes == {
            "actions": (steps, 7),
            "robot_states": (steps, 9),
            "rewards": (steps,),
            "dones": (steps,),
            "obs": None,
            "obs/agentview_rgb": (steps, 16, 16, 3),
            "obs/eye_in_hand_rgb": (steps, 16, 16, 3),
            "obs/ee_states": (steps, 6),
            "obs/ee_pos": (steps, 3),
            "obs/ee_ori": (steps, 3),
            "obs/gripper_states": (steps, 2),
            "obs/joint_states": (steps, 7),
        }
        assert data["demo_0/obs/agentview_rgb"].dtype == np.uint8
        assert data["demo_0/dones"][()].tolist() == [0] * (steps - 1) + [1]
        np.testing.assert_allclose(np.linalg.norm(data["demo_0/robot_states"][:, 5:], axis=1), 1)
        upright = shown.picture(0.05, "agent", 16, 16).rgb
        np.testing.assert_array_equal(data["demo_0/obs/agentview_rgb"][0], upright[::-1, ::-1])


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    task=st.sampled_from(["reach", "pick"]),
    perturb=st.sampled_from([0.0, 0.7]),
    fps=st.sampled_from([4.0, 7.0, None]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, task: str, perturb: float, fps: float | None
) -> None:
    out = tmp_path_factory.mktemp("libero") / "data"
    record("libero", out, clips=1, seed=seed, tasks=task, size=16, perturb=perturb)
    source = open_source("libero", out, options={"views": "agentview,eye_in_hand"})
    clip = source.read(source.clips()[0], FrameSampling(fps=fps, stride=3, size=16))
    episode = demonstrate(seed, 0, find_tasks(task), perturb=perturb)
    assert clip.text == episode.scene.instruction
    steps = len(episode.action) - 1
    at = np.rint(clip.time * 20).astype(int) + 1  # observations begin after the first action
    np.testing.assert_array_equal(clip.state, episode.state[at])
    np.testing.assert_array_equal(clip.action[at < steps], episode.action[at[at < steps]])
    np.testing.assert_array_equal(clip.trajectory.state, episode.state[1:steps])
    np.testing.assert_array_equal(clip.trajectory.action, episode.action[1:steps])
    np.testing.assert_array_equal(clip.trajectory.step, at - 1)
    assert clip.trajectory.hz == 20
    np.testing.assert_array_equal(clip.is_pad, at == steps)
    for moment, rgb, agent, wrist in zip(at, clip.rgb, *clip.views.values(), strict=True):
        np.testing.assert_array_equal(rgb, episode.picture(moment / 20, "agent", 16, 16).rgb)
        np.testing.assert_array_equal(agent, rgb)
        np.testing.assert_array_equal(wrist, episode.picture(moment / 20, "wrist", 16, 16).rgb)
    total = clip.extra["action_sum"]
    np.testing.assert_allclose(total[-1], clip.trajectory.action[: at[-1] - 1].sum(axis=0), atol=1e-4)


def test_the_last_observation_has_no_action(recorded: Path) -> None:
    source = open_source("libero", recorded)
    clip = source.read(source.clips()[0], EVERY)
    assert clip.is_pad.tolist() == [False] * (len(clip) - 1) + [True]
    assert clip.trajectory.step[-1] == len(clip.trajectory.action) == len(clip) - 1
    assert not clip.action[-1, :6].any()
    assert clip.action[-1, 6] == clip.action[-2, 6]


def test_observations_before_the_step(recorded: Path) -> None:
    after, before = (open_source("libero", recorded, options=options) for options in ({}, {"observed": "before"}))
    one, other = (source.read(source.clips()[0], EVERY) for source in (after, before))
    np.testing.assert_array_equal(one.state, other.state)
    np.testing.assert_array_equal(one.action[:-1], other.action[1:])
    assert not other.is_pad.any()
    assert len(other.trajectory.action) == len(other)


def test_the_root_may_be_suites_a_suite_or_a_file(recorded: Path) -> None:
    def read(root: Path) -> dict[str, str]:
        return {ref.key: ref.text for ref in open_source("libero", root).clips()}

    suites = read(recorded)
    assert all(key.startswith("libero_tabletop/") and key.endswith("_demo/demo_0") for key in suites)
    suite = read(recorded / "libero_tabletop")
    assert suite == {key.removeprefix("libero_tabletop/"): text for key, text in suites.items()}
    file = first_file(recorded)
    assert read(file) == {f"{file.stem}/demo_0": suite[f"{file.stem}/demo_0"]}
    with pytest.raises(ValueError, match=r"not a folder or a file \.hdf5"):
        (recorded.parent / "notes.txt").touch()
        open_source("libero", recorded.parent / "notes.txt")


def test_demonstrations_of_one_instruction_share_a_file(root: Path) -> None:
    one, other = sorted(root.rglob("*.hdf5"))
    with h5py.File(one, "a") as file, h5py.File(other) as second:
        for number in (2, 10):
            second.copy("data/demo_0", file["data"], name=f"demo_{number}")
    refs = open_source("libero", one).clips()
    assert [ref.key.split("/")[1] for ref in refs] == ["demo_0", "demo_10", "demo_2"]
    assert [ref.index for ref in refs] == [0, 2, 1]  # in the file's order


def test_views_keep_their_size_or_take_another(recorded: Path) -> None:
    for options, size in (({}, 16), ({"views_size": "24"}, 24)):
        source = open_source("libero", recorded, options={"views": "eye_in_hand", **options})
        clip = source.read(source.clips()[0], FrameSampling(size=14))
        assert clip.rgb.shape[1:] == (14, 14, 3)
        assert clip.views["eye_in_hand"].shape == (len(clip), size, size, 3)
    main = open_source("libero", recorded, options={"view": "eye_in_hand"})
    assert not main.read(main.clips()[0], EVERY).views


def test_a_copy_in_another_process_reads_the_same(recorded: Path) -> None:
    source = open_source("libero", recorded)
    ref = source.clips()[0]
    assert len(pickle.dumps(source)) < 2000
    again = pickle.loads(pickle.dumps(source)).read(ref, EVERY)
    np.testing.assert_array_equal(again.rgb, source.read(ref, EVERY).rgb)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("actions", "demo_0 has no 'actions'"),
        ("obs/ee_pos", "demo_0 has no 'obs/ee_pos'"),
        ("obs/agentview_rgb", "demo_0 has no 'obs/agentview_rgb'"),
    ],
)
def test_a_missing_key(root: Path, name: str, sentence: str) -> None:
    with h5py.File(first_file(root), "a") as file:
        del file[f"data/demo_0/{name}"]
    key, reason = damaged(open_source("libero", root))
    assert first_file(root).stem in key
    assert sentence in reason and str(first_file(root)) in reason


@pytest.mark.parametrize("name", ["obs/ee_ori", "obs/agentview_rgb", "actions"])
def test_arrays_that_differ_in_length(root: Path, name: str) -> None:
    with h5py.File(first_file(root), "a") as file:
        values = file[f"data/demo_0/{name}"][:-3]
        del file[f"data/demo_0/{name}"]
        file[f"data/demo_0/{name}"] = values
    _, reason = damaged(open_source("libero", root))
    assert "expected" in reason and "record" in reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(root: Path, value: float) -> None:
    with h5py.File(first_file(root), "a") as file:
        file["data/demo_0/actions"][5, 2] = value
    _, reason = damaged(open_source("libero", root))
    assert f"demo_0/actions is {value} at step 5, dimension 2" in reason


def test_another_width(root: Path) -> None:
    with h5py.File(first_file(root), "a") as file:
        values = file["data/demo_0/actions"][:, :6]
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = values
    assert "expected (steps, 7)" in damaged(open_source("libero", root))[1]


@pytest.mark.parametrize("kept", [100, 0.6], ids=["head", "most"])
def test_a_truncated_file(root: Path, kept: float) -> None:
    content = first_file(root).read_bytes()
    first_file(root).write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    key, reason = damaged(open_source("libero", root))
    assert key == f"libero_tabletop/{first_file(root).stem}"
    assert "cannot be read as HDF5" in reason and "copy or download it again" in reason


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [(None, "no attribute 'problem_info'"), ("{", "no JSON object"), ('{"language_instruction": ""}', "is ''")],
)
def test_no_instruction(root: Path, problem: str | None, sentence: str) -> None:
    with h5py.File(first_file(root), "a") as file:
        if problem is None:
            del file["data"].attrs["problem_info"]
        else:
            file["data"].attrs["problem_info"] = problem
    assert sentence in damaged(open_source("libero", root))[1]


@pytest.mark.parametrize("said", ['"open the drawer"', ["open", "the", "drawer"]], ids=["quoted", "words"])
def test_ways_of_writing_an_instruction(root: Path, said: object) -> None:
    with h5py.File(first_file(root), "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": said})
    assert open_source("libero", first_file(root)).clips()[0].text == "open the drawer"


def test_data_in_another_file_is_refused(root: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.hdf5", "w") as secret:
        secret["actions"] = np.zeros((10, 7))
    with h5py.File(first_file(root), "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "actions")
    assert "in another file" in damaged(open_source("libero", root))[1]


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no HDF5 file"):
        open_source("libero", tmp_path).clips()
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=r"no demonstration of LIBERO: .*the file has no 'data' \(it has: x\)"):
        open_source("libero", tmp_path).clips()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"view": "agentvew"}, "Did you mean 'agentview'"),
        ({"views": "eye_in_hand,eye_in_hand"}, "each camera once"),
        ({"views_size": "big"}, "expected native"),
        ({"observed": "during"}, "choose from after, before"),
        ({"vew": "agentview"}, "no option 'vew'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_source("libero", tmp_path, options=options)
    with pytest.raises(ValueError, match="no splits"):
        open_source("libero", tmp_path, split="train")


def test_the_bytes_do_not_depend_on_the_processes_and_are_not_overwritten(recorded: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    record("libero", tmp_path / "two", clips=2, seed=SEED, tasks="reach", size=16, workers=2)
    assert contents(tmp_path / "two") == contents(recorded)
    (tmp_path / "two/.parts").mkdir()
    with pytest.raises(ValueError, match="--overwrite"):
        record("libero", tmp_path / "two", clips=1)
    with pytest.raises(ValueError, match="both views"):
        record("libero", tmp_path / "one", views=("agent",))
