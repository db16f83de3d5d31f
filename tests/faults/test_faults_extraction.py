"""Extraction that is killed, interrupted or refused by the machine: nothing committed is lost, a rerun completes it.

Every case ends in `Bench.check_recovery`: the shards committed at the time of the fault are whole, a rerun completes
the store and touches none of them, the store verifies, and equals an undisturbed one byte for byte.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_harness import Bench, decoders_of

from pipeline.store.layout import MANIFEST

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

FORMATS = ("zarr", "webdataset")
COMMIT_POINTS, WRITE_POINTS, TERM_POINTS = 20, 5, 20


@pytest.fixture
def benches(request: pytest.FixtureRequest) -> dict[str, Bench]:
    return {"zarr": request.getfixturevalue("zarr_bench"), "webdataset": request.getfixturevalue("tar_bench")}


@pytest.fixture(params=FORMATS)
def bench(request: pytest.FixtureRequest, benches: dict[str, Bench]) -> Bench:
    return benches[request.param]


def spread(number: int, of: int, events: int) -> int:
    """Event `number` of `of`, spread over all events, the first and the last included; counted from 1."""
    return 1 + round(number * (events - 1) / (of - 1))


def moment(bench: Bench, dice: random.Random, beginning: float = 0.1) -> float:
    """Some moment of a run, in seconds."""
    return dice.uniform(beginning, 1.05) * bench.seconds


@pytest.mark.parametrize("point", range(COMMIT_POINTS))
def test_extraction_under_death_at_a_commit_point(bench: Bench, tmp_path: Path, point: int) -> None:
    """The process dies just before it opens for writing, syncs, renames or removes a file of the store."""
    at = spread(point, COMMIT_POINTS, bench.commits)
    run = bench.start(tmp_path / "s", store=str(tmp_path / "s"), at=at, do="exit")
    assert run.ended() == 9, run.said()
    bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("point", range(WRITE_POINTS))
def test_extraction_under_death_within_a_shard(bench: Bench, tmp_path: Path, point: int) -> None:
    """The process dies before it writes an entry of an archive: a shard is half written."""
    at = spread(point, WRITE_POINTS, bench.writes)
    run = bench.start(tmp_path / "s", store=str(tmp_path / "s"), at=at, do="exit", events="writes")
    assert run.ended() == 9, run.said()
    bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("seed", range(10))
def test_extraction_under_sigkill(bench: Bench, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    run = bench.start(tmp_path / "s")
    time.sleep(moment(bench, dice))
    os.kill(run.pid, signal.SIGKILL)
    assert run.ended() in (-signal.SIGKILL, 0)
    bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("seed", range(3))
def test_extraction_under_sigkill_again_and_again(bench: Bench, tmp_path: Path, seed: int) -> None:
    """The reruns are killed as well."""
    dice = random.Random(100 + seed)
    for _ in range(4):
        kept = bench.committed(tmp_path / "s")
        run = bench.start(tmp_path / "s", *(["--resume"] if (tmp_path / "s" / MANIFEST).exists() else []))
        time.sleep(moment(bench, dice, 0.3))
        os.kill(run.pid, signal.SIGKILL)
        run.ended()
        assert kept.items() <= bench.committed(tmp_path / "s").items()
    bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("seed", range(2))
def test_extraction_under_sigkill_with_decoders(zarr_bench: Bench, tmp_path: Path, seed: int) -> None:
    """Decoding processes end with the run that started them."""
    run = zarr_bench.start(tmp_path / "s", workers=2)
    last = time.monotonic() + 60
    while len(decoders_of(run.pid)) < 2 and time.monotonic() < last:
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0, 4))
    os.kill(run.pid, signal.SIGKILL)
    run.ended()
    zarr_bench.no_process_is_left()
    zarr_bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("seed", range(5))
def test_extraction_under_sigterm(bench: Bench, tmp_path: Path, seed: int) -> None:
    """What a cluster sends before it takes the machine: the store verifies as it is left."""
    dice = random.Random(200 + seed)
    run = bench.start(tmp_path / "s")
    last = time.monotonic() + 60
    while not (tmp_path / "s" / MANIFEST).exists() and time.monotonic() < last:
        time.sleep(0.005)
    time.sleep(dice.uniform(0, bench.seconds))
    os.kill(run.pid, signal.SIGTERM)
    code = run.ended()
    assert code in (130, 0), (code, run.said())
    assert code == 0 or run.sentence() == "Interrupted."
    bench.check_recovery(tmp_path / "s", clean=True)


@pytest.mark.parametrize("events", ["commits", "writes"])
@pytest.mark.parametrize("point", range(TERM_POINTS))
def test_extraction_under_sigterm_at_a_commit_point(bench: Bench, tmp_path: Path, point: int, events: str) -> None:
    """The same, at each step of writing: between two files, within a shard, while the last ones are waited for."""
    total = bench.commits if events == "commits" else bench.writes
    at = spread(point, TERM_POINTS, total)
    run = bench.start(tmp_path / "s", store=str(tmp_path / "s"), at=at, do="SIGTERM", events=events)
    code = run.ended()
    assert code in (130, 0), (code, run.said())
    assert code == 0 or run.sentence() == "Interrupted."
    bench.check_recovery(tmp_path / "s", clean=True)


@pytest.mark.parametrize("seed", range(3))
def test_extraction_under_a_killed_decoder(zarr_bench: Bench, tmp_path: Path, seed: int) -> None:
    """What the kernel does when memory is short: one decoding process is gone, its clip with it."""
    dice = random.Random(300 + seed)
    run = zarr_bench.start(tmp_path / "s", workers=2)
    last = time.monotonic() + 60
    while not (decoders := decoders_of(run.pid)) and time.monotonic() < last:
        time.sleep(0.01)
    time.sleep(dice.uniform(0, 1))
    os.kill(dice.choice(decoders), signal.SIGKILL)
    code = run.ended()
    assert code == 0 or (code == 1 and "--resume" in run.sentence()), (code, run.said())
    zarr_bench.no_process_is_left()
    zarr_bench.check_recovery(tmp_path / "s", clean=True)


ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")


@pytest.mark.parametrize("point", range(8))
def test_extraction_under_a_failing_disk(bench: Bench, tmp_path: Path, point: int) -> None:
    """From some event on everything fails: no room, an input/output error, a file system that became read-only."""
    error = ERRORS[point % len(ERRORS)]
    at = spread(point, 8, bench.commits)
    run = bench.start(tmp_path / "s", store=str(tmp_path / "s"), at=at, do=error)
    code = run.ended()
    # where only the lock was left to be removed, everything has been written
    assert code == 1 or (code == 0 and at > bench.commits - 2), (code, run.said())
    full = error in ("ENOSPC", "EDQUOT")
    assert code == 0 or ("No room" if full else "Could not write") in run.sentence() or at <= 2, run.said()
    bench.check_recovery(tmp_path / "s")


@pytest.mark.parametrize("seed", range(3))
def test_extraction_under_a_limit_of_file_size(bench: Bench, tmp_path: Path, seed: int) -> None:
    """`ulimit -f`: a shard stops in the middle of a write."""
    largest = max(path.stat().st_size for path in (bench.whole / "shards").iterdir())
    run = bench.start(tmp_path / "s", largest_file=random.Random(400 + seed).randint(2000, largest - 1))
    assert run.ended() == 1, run.said()
    assert "Could not write" in run.sentence(), run.said()
    bench.check_recovery(tmp_path / "s")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, full after 300 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True, timeout=60
    )
    if made.returncode:
        pytest.skip(f"no file system may be mounted here ({made.stderr.strip()})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=60)


@pytest.mark.parametrize("filler", [0, 40_000, 150_000, 299_000])
def test_extraction_under_a_full_disk(bench: Bench, small_disk: Path, filler: int) -> None:
    """A real one; somebody else fills a part of it, then frees it."""
    other = small_disk / "other"
    other.write_bytes(bytes(filler))
    run = bench.start(small_disk / "s")
    code = run.ended()
    assert code == 1, (code, run.said())
    assert "No room" in run.sentence() or "No space" in run.sentence(), run.said()
    other.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True, timeout=60)
    bench.check_recovery(small_disk / "s")


def test_extraction_under_a_read_only_folder(bench: Bench, tmp_path: Path) -> None:
    """Mounted so, since the permissions of a folder do not stop root."""
    store = tmp_path / "s"
    store.mkdir()
    for options in (["--bind", str(store), str(store)], ["-o", "remount,ro,bind", str(store)]):
        made = subprocess.run(["mount", *options], capture_output=True, text=True, timeout=60)
        if made.returncode:
            pytest.skip(f"no folder may be mounted read-only here ({made.stderr.strip()})")
    try:
        run = bench.start(store)
        assert run.ended() == 1, run.said()
        assert "Could not write" in run.sentence(), run.said()
        assert list(store.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True, timeout=60)
    bench.check_recovery(store)


@pytest.mark.parametrize("seed", range(3))
def test_extraction_under_a_leaping_clock(bench: Bench, tmp_path: Path, seed: int) -> None:
    """The time of day leaps by decades, in the killed run and in the rerun; files are of any age."""
    dice = random.Random(500 + seed)
    run = bench.start(tmp_path / "s", clock=seed)
    time.sleep(moment(bench, dice, 0.4))
    os.kill(run.pid, signal.SIGKILL)
    run.ended()
    for path in (tmp_path / "s").rglob("*"):
        age = dice.choice((0, 3e8, 4e9))
        os.utime(path, (age, age))
    bench.check_recovery(tmp_path / "s", clock=seed + 50)


@pytest.mark.parametrize("seed", range(4))
def test_extraction_under_a_second_one(bench: Bench, tmp_path: Path, seed: int) -> None:
    """Two runs on one store: one completes it, the other is refused in a sentence, whatever mode it was started in."""
    dice = random.Random(600 + seed)
    mode = ([], ["--resume"], ["--overwrite"], ["--resume"])[seed]
    first = bench.start(tmp_path / "s")
    last = time.monotonic() + 60
    while seed and not (tmp_path / "s" / MANIFEST).exists() and time.monotonic() < last:
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 0.6) * bench.seconds)
    second = bench.start(tmp_path / "s", *mode)
    codes = first.ended(), second.ended()
    said = first.said()  # both write to one log
    assert 0 in codes and set(codes) <= {0, 2}, (codes, said)
    assert codes == (0, 0) or "Another process writes to" in said or "There is a store" in said, said
    bench.check_recovery(tmp_path / "s", clean=True)


@pytest.mark.parametrize("seed", range(2))
def test_extraction_under_the_lock_of_a_dead_one(bench: Bench, tmp_path: Path, seed: int) -> None:
    """A run is killed while a second one is refused; nobody has to remove a lock."""
    first = bench.start(tmp_path / "s")
    last = time.monotonic() + 60
    while not (tmp_path / "s" / MANIFEST).exists() and time.monotonic() < last:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = bench.start(tmp_path / "s", "--resume")
        code = second.ended()
    finally:
        os.kill(first.pid, signal.SIGKILL)
    first.ended()
    assert code == 2 and f"process {first.pid} on" in second.said(), second.said()
    assert (tmp_path / "s/writing.tmp-lock").exists()
    bench.check_recovery(tmp_path / "s")
