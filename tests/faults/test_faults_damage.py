"""Any byte of any file of a store flipped, any file cut or deleted: it is found, named, and mended."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_harness import Bench
from store_factory import folder_bytes, small_records, small_store

from pipeline.inspect_shards import inspect_store
from pipeline.store.errors import StoreError
from pipeline.store.layout import StoreLayout
from pipeline.store.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

CASES, BATCH = 500, 25


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "s"
    small_store(path, request.param, small_records(3, state=3, action=2), bad=[("x", "is broken")])
    assert verify(StoreLayout.open(str(path))) == []
    return path


def damage(path: Path, dice: random.Random) -> str:
    """Flip, cut, lengthen or delete; what was done."""
    data = bytearray(path.read_bytes())
    kind = dice.choice(("flip", "flip", "flip", "cut", "delete", "longer")) if data else "longer"
    path.unlink()  # another file of the name: the old one may still be mapped
    if kind == "delete":
        return f"{path.name} deleted"
    if kind == "flip":
        at, bits = dice.randrange(len(data)), dice.randrange(1, 256)
        data[at] ^= bits
        said = f"byte {at} of {path.name} xor {bits}"
    elif kind == "cut":
        del data[dice.randrange(len(data)) :]
        said = f"{path.name} cut to {len(data)}"
    else:
        data += dice.randbytes(dice.randint(1, 50))
        said = f"{path.name} longer"
    path.write_bytes(bytes(data))
    return said


def found(path: Path) -> bool:
    try:
        return bool(verify(StoreLayout.open(str(path))))
    except StoreError:  # a manifest that cannot be read: said in a sentence
        return True


@pytest.mark.parametrize("batch", range(CASES // BATCH // 2))
def test_every_damage_is_found(store: Path, tmp_path: Path, batch: int) -> None:
    """500 cases over both formats, every kind of file as often as another."""
    files = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
    for case in range(BATCH):
        dice = random.Random(1000 * batch + case)
        copy = tmp_path / str(case)
        shutil.copytree(store, copy)
        said = damage(copy / dice.choice(files), dice)
        assert found(copy), said
        shutil.rmtree(copy)


@pytest.fixture
def damaged(request: pytest.FixtureRequest, bench: Bench, tmp_path: Path) -> Iterator[Path]:
    copy = tmp_path / "s"
    shutil.copytree(bench.whole, copy)
    yield copy


@pytest.fixture(params=["zarr", "webdataset"])
def bench(request: pytest.FixtureRequest) -> Bench:
    name = {"zarr": "zarr_bench", "webdataset": "tar_bench"}[request.param]
    made: Bench = request.getfixturevalue(name)
    return made


@pytest.mark.parametrize("seed", range(12))
def test_repair_gives_back_the_undisturbed_store(bench: Bench, damaged: Path, seed: int) -> None:
    """Each kind of file once, then several at a time; equal byte for byte, and whole shards are not touched."""
    dice = random.Random(seed)
    files = sorted(path.relative_to(damaged) for path in damaged.rglob("*") if path.is_file())
    chosen = [files[(seed * 5) % len(files)]] if seed < 9 else dice.sample(files, 3)
    if seed >= 9:  # the manifest's only copy is in SHA256SUMS
        chosen = [name for name in chosen if name.name not in ("SHA256SUMS", "manifest.json")]
    before = {path: path.stat().st_ino for path in (damaged / "shards").iterdir()}
    said = [damage(damaged / name, dice) for name in chosen]
    touched = {name.name.split(".")[0] for name in chosen}
    run = bench.run(damaged, "repair", str(damaged), "--device", "cpu", "--workers", "0")
    assert run.ended() == 0, (said, run.said())
    assert verify(StoreLayout.open(str(damaged))) == [], said
    assert inspect_store(str(damaged)).digest == bench.digest
    assert folder_bytes(damaged) == folder_bytes(bench.whole), said
    same = {path: inode for path, inode in before.items() if path.name.split(".")[0] not in touched}
    assert {path: path.stat().st_ino for path in same} == same


def test_only_the_damaged_clips_go_through_the_models(bench: Bench, damaged: Path) -> None:
    """Of a shard with one bad clip the other is taken as it is."""
    layout = StoreLayout.open(str(damaged))
    path = Path(layout.files.path(layout.data_name("000001")))
    data = bytearray(path.read_bytes())
    from pipeline.store import open_store

    store = open_store(str(damaged))
    feat = store[2].tokens.feat.tobytes()
    at = bytes(data).index(feat)
    del store
    data[at + 5] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    run = bench.run(damaged, "repair", str(damaged), "--device", "cpu", "--workers", "0")
    assert run.ended() == 0, run.said()
    assert "1 clips extracted again, 1 taken from the damaged shards" in run.said(), run.said()
    assert folder_bytes(damaged) == folder_bytes(bench.whole)


def test_a_repair_says_what_it_needs(bench: Bench, damaged: Path, tmp_path: Path) -> None:
    """A video that is gone, a list of others: what is there stays, and the sentence names the clip or the folder."""
    run = bench.run(damaged, "repair", str(damaged))
    assert run.ended() == 0 and "whole: nothing to repair" in run.said()
    layout = StoreLayout.open(str(damaged))
    Path(layout.files.path(layout.data_name("000000"))).unlink()
    videos = tmp_path / "videos"
    shutil.copytree(bench.videos, videos)
    (videos / "001.mp4").write_bytes(b"")
    here = ("--root", str(videos), "--device", "cpu", "--workers", "0")
    run = bench.run(damaged, "repair", str(damaged), *here)
    assert run.ended() == 1 and "Clip 001 was good and cannot be read now" in run.sentence(), run.said()
    (videos / "001.mp4").unlink()
    run = bench.run(damaged, "repair", str(damaged), *here)
    assert run.ended() == 2 and "lists other clips" in run.sentence(), run.said()
    run = bench.run(damaged, "repair", str(damaged), "--device", "cpu", "--workers", "0")
    assert run.ended() == 0, run.said()
    assert folder_bytes(damaged) == folder_bytes(bench.whole)
