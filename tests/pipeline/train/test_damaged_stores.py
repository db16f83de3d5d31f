"""Training on a damaged store stops and names the shard or, when asked to, goes on without it and counts."""

from pathlib import Path

import pytest
from store_factory import small_records, small_store

from pipeline.store import StoreError
from pipeline.store.damaged import open_checked
from pipeline.train_config import DataSection

STOP, SKIP = DataSection(), DataSection(damaged="skip")


@pytest.fixture(params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    small_store(tmp_path / "s", request.param, small_records(5))
    return tmp_path / "s"


def data_file(store: Path, shard: str) -> Path:
    (path,) = (path for path in (store / "shards").glob(f"{shard}.*") if path.suffix != ".json")
    return path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.unlink()  # the old file may still be mapped
    path.write_bytes(bytes(data))


def test_a_whole_store_is_opened_whole(store: Path) -> None:
    assert (len(open_checked(str(store), STOP)), open_checked(str(store), SKIP).left_out) == (5, 0)


@pytest.mark.parametrize("how", ["flip", "cut", "data", "sidecar", "sidecar bytes"])
def test_a_damaged_shard_stops_training_or_is_left_out(
    store: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = open_checked(str(store), STOP).digest
    path, sidecar = data_file(store, "000001"), store / "shards/000001.json"
    if how == "flip":
        flip(path, path.stat().st_size // 3)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "sidecar bytes":
        flip(sidecar, sidecar.stat().st_size // 2)
    else:
        (path if how == "data" else sidecar).unlink()
    with pytest.raises(StoreError, match=r"1 shards of .* are damaged \(000001: .*cla repair .*data\.damaged=skip"):
        open_checked(str(store), STOP)
    left = open_checked(str(store), SKIP)
    assert "without 1 damaged shards" in capsys.readouterr().err
    assert len(left) == 3 and left.digest != whole
    assert left.left_out == (0 if how == "sidecar" else 2)  # without its sidecar the index does not list it
    assert left.batch(range(left.num_frames), ("tokens", "cells")).tokens.feat.shape[0] > 0


def test_sizes_are_checked_without_reading(store: Path) -> None:
    path = data_file(store, "000002")
    flip(path, 200)
    assert len(open_checked(str(store), DataSection(check="sizes"))) == 5
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="000002"):
        open_checked(str(store), DataSection(check="sizes"))


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet"])
def test_a_damaged_manifest_or_index_stops_training(store: Path, name: str) -> None:
    path = store / name
    data = path.read_bytes().replace(b"ssv2", b"ssv3") if name == "manifest.json" else path.read_bytes() + b"x"
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{name} of .*cla repair"):
        open_checked(str(store), SKIP)
