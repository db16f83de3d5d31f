import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.datasets import DatasetSpec, safe_key
from pipeline.sources import dataset_names, dataset_spec, open_source
from pipeline.sources.base import unique_keys

PROJECT = Path(__file__).parents[3]


def test_names() -> None:
    assert dataset_names() == tuple(sorted(dataset_names()))
    assert {"ssv2", "tabletop", "video"} <= set(dataset_names())


@pytest.mark.parametrize("name", dataset_names())
def test_every_dataset_says_what_it_is(name: str) -> None:
    spec = dataset_spec(name)
    assert isinstance(spec, DatasetSpec)
    assert spec.name == name
    assert spec.title and spec.where.endswith((".", "!")) and spec.licence


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown dataset 'ssv'; choose from .*ssv2.* Did you mean 'ssv2'\?"):
        open_source("ssv")
    with pytest.raises(ValueError, match="Unknown dataset 'x'"):
        dataset_spec("x")


@pytest.mark.parametrize("name", ["ssv2", "video"])
def test_missing_root_says_where_to_get_it(name: str, tmp_path: Path) -> None:
    for root in (None, tmp_path / "none"):
        with pytest.raises(ValueError, match="--root") as caught:
            open_source(name, root)
        assert dataset_spec(name).where in str(caught.value)
        assert "cla sim record --format ssv2" in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        open_source(name, tmp_path / "file")


def test_the_specs_import_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.sources import *; from pipeline.sources import dataset_names, dataset_spec;"
        "[dataset_spec(n) for n in dataset_names()];"
        "heavy = sorted({'torch', 'av', 'mujoco', 'gymnasium', 'h5py', 'pyarrow'} & set(sys.modules));"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(st.lists(st.text(alphabet="ab /.-é1", max_size=4), unique=True, max_size=12))
def test_keys_are_unique_safe_and_independent_of_order(names: list[str]) -> None:
    keys = unique_keys(names)
    assert len(set(keys)) == len(names)
    assert all(key == safe_key(key) for key in keys)
    by_name = dict(zip(names, keys, strict=True))
    shuffled = sorted(names)
    assert dict(zip(shuffled, unique_keys(shuffled), strict=True)) == by_name


def test_a_suffixed_key_that_is_taken_already() -> None:
    first = unique_keys(["a.", "a "])  # both are "a" with what trails stripped
    taken = [*["a.", "a "], first[0]]
    keys = unique_keys(taken)
    assert len(set(keys)) == 3
