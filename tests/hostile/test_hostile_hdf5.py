"""HDF5 files that name other files, claim what no memory holds, or hold no numbers. Nothing they name is opened."""

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile_files import little_memory

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sim.record import record
from pipeline.sources import open_source

EVERY = FrameSampling(fps=None, max=4, size=16)
ACTIONS = {"libero": "data/demo_0/actions", "aloha": "action"}
PICTURES = {"libero": "data/demo_0/obs/agentview_rgb", "aloha": "observations/images/agent"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("hdf5")
    for name in ACTIONS:
        record(name, out / name, clips=1, seed=3, tasks="reach", size=16)
    return {name: out / name for name in ACTIONS}


@pytest.fixture(params=ACTIONS)
def dataset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(recorded: dict[str, Path], dataset: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded[dataset], tmp_path / dataset))


def change(root: Path, name: str, make: Callable[[h5py.File, str, Any], object]) -> Path:
    """Put what `make` makes in the place of a dataset, given its values."""
    path = next(root.rglob("*.hdf5"))
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        make(file, name, values)
    return path


def refusal(dataset: str, root: Path) -> str:
    """The sentence that comes of the one clip, or of the listing; little memory is taken on the way."""
    with little_memory():
        try:
            source = open_source(dataset, root)
            (ref,) = source.clips()
            with pytest.raises(BadClip) as caught:
                source.read(ref, EVERY)
            said = caught.value.reason
        except ValueError as error:
            said = str(error)
    assert str(next(root.rglob("*.hdf5"))) in said and "\n" not in said and len(said) < 700
    return said


def test_a_name_that_is_no_text_is_told(dataset: str, root: Path) -> None:
    with h5py.File(next(root.rglob("*.hdf5")), "r+") as file:
        group = file["observations/images"] if dataset == "aloha" else file["data"]
        h5py.h5g.create(group.id, b"demo_\xb2")
    assert "is no UTF-8 text (b'demo_\\xb2')" in refusal(dataset, root)


def test_links_are_not_followed(dataset: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["values"] = np.zeros((50, 14), np.float32)
    opened: list[str] = []
    real = h5py.h5f.open
    monkeypatch.setattr(h5py.h5f, "open", lambda name, *a, **k: opened.append(str(name)) or real(name, *a, **k))
    secret = str(tmp_path / "secret.hdf5")
    links = (h5py.ExternalLink(secret, "values"), h5py.SoftLink("/elsewhere"), h5py.ExternalLink(secret, "/"))
    for number, link in enumerate(links):
        copy = Path(shutil.copytree(root, tmp_path / f"copy{number}"))
        change(copy, ACTIONS[dataset], lambda file, name, _, link=link: file.__setitem__(name, link))
        # HDF5 itself would open what a link names, and fails while somebody writes to it
        with h5py.File(secret, "a"):
            assert "is a link, perhaps to what is kept in another file" in refusal(dataset, copy)
    assert secret not in opened


def test_a_group_that_is_a_link(dataset: str, root: Path, tmp_path: Path) -> None:
    path = next(root.rglob("*.hdf5"))
    group = {"libero": "data", "aloha": "observations"}[dataset]
    with h5py.File(path, "r+") as file:
        file.move(group, "moved")
        file[group] = h5py.ExternalLink(str(path), "moved")
    assert "is a link" in refusal(dataset, root)


def external(file: h5py.File, name: str, values: Any) -> None:
    file.create_dataset(name, shape=values.shape, dtype="f4", external=[("/etc/passwd", 0, 4 * values.size)])


def virtual(file: h5py.File, name: str, values: Any) -> None:
    layout = h5py.VirtualLayout(shape=values.shape, dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=values.shape)
    file.create_virtual_dataset(name, layout)


def bomb(file: h5py.File, name: str, values: Any) -> None:
    """256 MB of zeros in 256 kB, as one piece of a small dataset."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(272)) + packer.flush()
    made = file.create_dataset(name, shape=values.shape, dtype="f4", chunks=values.shape, compression="gzip")
    made.id.write_direct_chunk((0, 0), packed)


KINDS: dict[str, tuple[Callable[[h5py.File, str, Any], object], str]] = {
    "kept in another file": (external, "is kept in another file"),
    "put together from another file": (virtual, "is kept in another file"),
    "10^12 rows": (
        lambda f, n, v: f.create_dataset(n, shape=(10**12, v.shape[1]), dtype="f4", chunks=True),
        "claims .* numbers, expected at most",
    ),
    "10^18 numbers": (
        lambda f, n, v: f.create_dataset(n, shape=(10**9, 10**9), dtype="u1", chunks=(1, 1024)),
        "claims .* numbers, expected at most",
    ),
    "pieces of 3 GB": (
        lambda f, n, v: f.create_dataset(n, shape=v.shape, maxshape=(None, None), dtype="f4", chunks=(10**5, 7000)),
        "is stored in pieces of 2,800,000,000 bytes",
    ),
    "a piece that unpacks to 256 MB": (bomb, "unpacks to more than the"),
    "another filter": (
        lambda f, n, v: f.create_dataset(n, data=v, chunks=True, compression="lzf"), "expected gzip: convert it",
    ),
    "texts": (
        lambda f, n, v: f.create_dataset(n, data=np.array(["a"] * len(v), dtype=object), dtype=h5py.string_dtype()),
        "holds object, expected numbers",
    ),
    "references": (
        lambda f, n, v: f.create_dataset(n, data=np.array([f.ref] * len(v), h5py.ref_dtype), dtype=h5py.ref_dtype),
        "holds object, expected numbers",
    ),
    "lists of any length": (
        lambda f, n, v: f.create_dataset(n, shape=v.shape, dtype=h5py.vlen_dtype("f4")), "holds object, expected",
    ),
    "records": (lambda f, n, v: f.create_dataset(n, shape=v.shape, dtype=[("a", "f4")]), "expected numbers"),
    "complex numbers": (lambda f, n, v: f.create_dataset(n, data=v.astype("c8")), "holds complex64, expected numbers"),
    "nothing": (lambda f, n, v: f.create_dataset(n, data=h5py.Empty("f4")), "expected numbers"),
    "a group": (lambda f, n, v: f.create_group(n), "is a Group, expected a Dataset"),
    "no rows": (lambda f, n, v: f.create_dataset(n, data=v[:0]), "has 0 rows, expected 1 to"),
    "not a number": (lambda f, n, v: f.create_dataset(n, data=np.where(v == v[0, 0], np.nan, v)), "is nan at step"),
    "infinity": (lambda f, n, v: f.create_dataset(n, data=np.full_like(v, -np.inf)), "is -inf at step 0"),
    "1e30": (lambda f, n, v: f.create_dataset(n, data=np.full_like(v, 1e30)), "finite ones of at most 1e\\+12"),
    "1e300": (lambda f, n, v: f.create_dataset(n, data=np.full(v.shape, 1e300)), "is inf at step 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_actions_of_another_kind(dataset: str, root: Path, kind: str) -> None:
    import re

    make, sentence = KINDS[kind]
    change(root, ACTIONS[dataset], make)
    said = refusal(dataset, root)
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((9, 10**5, 10**5, 3), "has 100000 x 100000 pixels, expected 1 to 67108864"),
        ((10**12, 16, 16, 3), "has 1000000000000 pictures"),
        ((9, 0, 16, 3), "has 0 x 16 pixels"),
    ],
)
def test_pictures_that_no_memory_holds(dataset: str, root: Path, shape: tuple[int, ...], sentence: str) -> None:
    chunks = None if 0 in shape else tuple(min(side, 16) for side in shape)
    change(root, PICTURES[dataset], lambda f, n, v: f.create_dataset(n, shape=shape, dtype="u1", chunks=chunks))
    assert sentence in refusal(dataset, root)


def test_a_packed_picture_that_unpacks_to_256_megabytes(dataset: str, root: Path) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(272)) + packer.flush()

    def make(file: h5py.File, name: str, values: Any) -> None:
        made = file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip")
        made.id.write_direct_chunk((0, 0, 0, 0), packed)

    change(root, PICTURES[dataset], make)
    assert "has a piece at (0, 0, 0, 0) that unpacks to more than the" in refusal(dataset, root)


def test_packed_pictures_are_read(dataset: str, root: Path) -> None:
    before = [clip.rgb for clip in _clips(dataset, root)]
    change(root, PICTURES[dataset], lambda f, n, v: f.create_dataset(n, data=v, chunks=True, compression="gzip"))
    for old, new in zip(before, [clip.rgb for clip in _clips(dataset, root)], strict=True):
        np.testing.assert_array_equal(old, new)


def _clips(dataset: str, root: Path) -> list[Any]:
    source = open_source(dataset, root)
    return [source.read(ref, EVERY) for ref in source.clips()]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[" * 50_000, "is no JSON object with a language_instruction"),
        ('{"language_instruction": "%s"}' % ("x" * 10_001), "has 10,001 characters"),
        ('{"language_instruction": {"a": 1}}', "language_instruction in problem_info is"),
        (np.zeros(10**6), "the attribute 'problem_info' has 8,000,000 bytes"),
        (h5py.Empty("f4"), "has no attribute 'problem_info' with a text"),
    ],
)
def test_attributes_of_libero(recorded: dict[str, Path], tmp_path: Path, value: Any, sentence: str) -> None:
    root = Path(shutil.copytree(recorded["libero"], tmp_path / "data"))
    with h5py.File(next(root.rglob("*.hdf5")), "w", libver="latest") as file:  # which may have large attributes
        file.create_group("data").attrs["problem_info"] = value
    assert sentence in refusal("libero", root)


@pytest.mark.parametrize("name", ["compress", "sim"])
def test_attributes_of_aloha(recorded: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(recorded["aloha"], tmp_path / "data"))
    with h5py.File(next(root.rglob("*.hdf5")), "r+") as file:
        file.attrs[name] = np.arange(3)
    assert f"the attribute '{name}' is array([0, 1, 2]), expected yes or no" in refusal("aloha", root)
