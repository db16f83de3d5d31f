"""Films of the tabletop world: reproducible, whole on the disk, and seen as said."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.train.frozen.filming import WAYS, Film, film, way_of


@pytest.mark.parametrize("way", ["standing", "roaming", "wrist", "swaying"])
def test_a_film_is_a_function_of_seed_and_index(way: str) -> None:
    one, same = (film(1000, 3, way=way, side=28, frames=3) for _ in range(2))  # type: ignore[arg-type]
    assert one.rgb.shape == (3, 28, 28, 3)
    assert one.depth.shape == (3, 28, 28)
    for name in ("rgb", "depth", "intrinsic", "extrinsic"):
        assert np.array_equal(getattr(one, name), getattr(same, name)), name
    moved = not np.array_equal(one.extrinsic[0], one.extrinsic[-1])
    assert moved == (way != "standing")


def test_the_ways_of_filming_take_turns() -> None:
    assert {way_of(index) for index in range(len(WAYS))} == {"standing", "roaming", "wrist"}
    seen = film(1000, 1, side=28, frames=2)
    assert np.array_equal(seen.rgb, film(1000, 1, way=way_of(1), side=28, frames=2).rgb)


def test_a_film_comes_back_from_its_file(tmp_path: Path) -> None:
    made = film(1000, 0, side=28, frames=2)
    made.save(tmp_path / "film.npz")
    again = Film.load(tmp_path / "film.npz")
    assert np.array_equal(again.depth, made.depth)
    assert [path.name for path in tmp_path.iterdir()] == ["film.npz"]


def test_another_file_is_no_film(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", rgb=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and then nothing")
    for name in ("other.npz", "torn.npz"):
        with pytest.raises(ValueError, match="is no film"):
            Film.load(tmp_path / name)
