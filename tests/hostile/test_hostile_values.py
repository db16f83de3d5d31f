"""Pickles where arrays are expected, which must never be loaded, and depth and cameras that nothing has measured."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from clip_factory import moving_ball
from hostile_files import change_json, sparse

from data_specs.records import BadClip
from pipeline.config import FailedError, RequestError
from pipeline.extract.encoders.folder import find_folder
from pipeline.extract.geometry import check_usable, from_sensor, usable
from pipeline.extract.lanes import Lanes
from pipeline.extract.weights import find_weights
from pipeline.train.checkpoint import RunFolder, RunRecord, load_state, load_weights
from pipeline.train.frozen.filming import Film
from pipeline.weights_files import read_file


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    record = RunRecord(task="line", recipe="line", config={}, step=1)
    folder.start(record, {})
    folder.save(record, {"w": torch.ones(3)}, {"step": 1}, best=True)
    return folder


def test_the_bomb_works(out: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(out)))
    assert out.exists()


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_checkpoints_are_not_unpickled(tmp_path: Path, out: Path, run: RunFolder, how: str) -> None:
    state = run.folder("last") / "train_state.pt"
    for path, read in ((tmp_path / "w.pth", read_file), (state, lambda path: load_state(path.parent))):
        if how == "pickle":
            path.write_bytes(pickle.dumps(Bomb(out)))
        else:
            torch.save({"w": Bomb(out)}, path, _use_new_zipfile_serialization=how == "torch")
        with pytest.raises((RequestError, FailedError), match=r"not a checkpoint of tensors|cannot be read") as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    (run.folder("last") / "model.safetensors").write_bytes(pickle.dumps(Bomb(out)))
    with pytest.raises(FailedError, match=r"model\.safetensors cannot be used"):
        load_weights(torch.nn.Linear(1, 1), run.folder("last"))
    assert not out.exists()


def test_weights_of_other_things(tmp_path: Path, run: RunFolder) -> None:
    for value in ([1, 2], {"a": 1}, {1: torch.ones(1)}, {"state_dict": {"a": "b"}}, torch.ones(2)):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(RequestError, match="holds neither tensors by name"):
            read_file(tmp_path / "w.pt")
    torch.save([1, 2], run.folder("last") / "train_state.pt")
    with pytest.raises(FailedError, match="it holds a list"):
        load_state(run.folder("last"))


@pytest.mark.parametrize("config", ["[" * 10_000, "{", "[1]"])
def test_a_config_in_weights(tmp_path: Path, config: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save({"w": torch.ones(2)}, metadata={"config": config}))
    if config == "[1]":
        assert read_file(path)[1] is None
        return
    with pytest.raises(RequestError, match="is not a readable safetensors file: is n"):
        read_file(path)


def test_a_header_of_weights_that_claims_much(tmp_path: Path) -> None:
    for size in (2**63, 2**40, 10**8):
        path = sparse(tmp_path / "w.safetensors", 1 << 20, size.to_bytes(8, "little"))
        with pytest.raises(RequestError, match="is not a readable safetensors file"):
            read_file(path)


def test_a_config_beside_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save({"w": torch.ones(2)}))
    for content, sentence in (("[" * 10_000, "is nested deeper"), ("{", "is not JSON"), ("[]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RequestError, match=rf"config\.json {sentence}"):
            find_weights("concerto", str(tmp_path / "w.safetensors"), "main")


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ('{"weight_map": {"a": "../../etc/passwd"}}', "lies outside of"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "lies outside of"),
        ('{"weight_map": {"a": 7}}', "has a damaged"),
        ('{"weight_map": [1]}', "has a damaged"),
        ("[" * 10_000, "is nested deeper than 64 levels"),
    ],
)
def test_an_index_of_weights(tmp_path: Path, index: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"w": torch.ones(2)}))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(RequestError, match=sentence) as caught:
        find_folder("text", "text.weights", str(tmp_path), "main")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/elsewhere", "", ".", "00000001/../../x", "x" * 5000])
def test_a_run_that_points_elsewhere(run: RunFolder, name: str) -> None:
    change_json(run.path / "checkpoints.json", lambda pointers: {**pointers, "best": name, "last": name})
    for which in ("best", "last"):
        with pytest.raises(FailedError, match=r"checkpoints\.json names the checkpoint .*, expected a folder of steps"):
            run.folder(which)


def test_films_hold_no_objects(tmp_path: Path, out: Path) -> None:
    np.savez(tmp_path / "film.npz", rgb=np.array([Bomb(out)], dtype=object), allow_pickle=True)
    for content in (None, b"PK\x03\x04", b"", pickle.dumps(Bomb(out))):
        if content is not None:
            (tmp_path / "film.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is no film"):
            Film.load(tmp_path / "film.npz")
    assert not out.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e30])
def test_depth_that_nothing_has_measured(value: float) -> None:
    clip = moving_ball(size=28)
    assert clip.depth is not None
    depth = clip.depth.copy()
    depth[1, 3, 4] = value
    found = from_sensor(replace(clip, depth=depth), Lanes(torch.device("cpu")))
    assert bool(usable(found).all())
    assert found.conf[1, 3, 4] == found.depth[1, 3, 4] == 0
    assert int((found.conf == 0).sum()) == 1 and float(found.depth.max()) < 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 1e30])
@pytest.mark.parametrize("name", ["intrinsic", "extrinsic"])
def test_cameras_that_no_one_has(name: str, value: float) -> None:
    clip = moving_ball(size=28)
    values = getattr(clip, name).copy()
    values[2, 0, 0] = value
    good = usable(from_sensor(replace(clip, **{name: values}), Lanes(torch.device("cpu"))))
    if name == "extrinsic" and value == -1.0:  # a camera that is turned around
        check_usable(clip.key, good.tolist(), 0)
        return
    with pytest.raises(BadClip, match=rf"the {name} of frame 2 is not finite or not positive"):
        check_usable(clip.key, good.tolist(), 0)
