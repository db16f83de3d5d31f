"""Each reader of files of others, fuzzed in a process of its own for its share of CLA_FUZZ_SECONDS (60 for all).

CLA_FUZZ_SEED (0) gives other cases, CLA_FUZZ_KEEP a folder for the files that broke a reader (fuzz-failures).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_targets import TARGETS

HERE = Path(__file__).resolve().parent

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

LEAST = 10
"""Cases of each kind, however slow the machine is: a fuzzer that reads nothing finds nothing."""


def fuzz(target: str, work: Path, seconds: float, seed: str) -> tuple[int, str, str]:
    """Exit code of a fuzzer in a process of its own (below 0: the signal that ended it), its last line, its errors."""
    command = [sys.executable, str(HERE / "fuzz.py"), target, "--seconds", str(seconds), "--seed", seed]
    with (work / "out").open("w") as out, (work / "err").open("w") as err:
        code = subprocess.run(
            [*command, "--least", str(LEAST), "--work", str(work)],
            stdout=out, stderr=err, stdin=subprocess.DEVNULL, timeout=seconds + 900, check=False,
        ).returncode  # fmt: skip
    return code, (work / "out").read_text().strip().rpartition("\n")[2], (work / "err").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_only_sentences_come_of_files_of_others(
    target: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seconds = float(os.environ.get("CLA_FUZZ_SECONDS", "60")) / len(TARGETS)
    seed = os.environ.get("CLA_FUZZ_SEED", "0")
    code, said, errors = fuzz(target, tmp_path, seconds, seed)
    if code != 0:
        kept = Path(os.environ.get("CLA_FUZZ_KEEP", "fuzz-failures")).resolve() / f"{target}-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(tmp_path, kept, ignore=shutil.ignore_patterns("hypothesis"))
        how = (
            f"died of {signal.Signals(-code).name}: {kept}/case is what it read" if code < 0 else f"see {kept}/failures"
        )
        pytest.fail(f"{target}: the fuzzer {how}\n{errors[-6000:]}", pytrace=False)
    counts = json.loads(said)
    assert counts["cases"] >= LEAST and counts["failed"] == 0, counts
    assert 0 < counts["refused"] <= counts["cases"], f"nothing was refused: {counts}"
    record_property("fuzzed", said)


def test_a_reader_that_ends_the_process_is_found(tmp_path: Path) -> None:
    code, said, errors = fuzz("aborts", tmp_path, 0.1, "0")
    assert code == -signal.SIGABRT and not said and "in _abort" in errors
    left = tmp_path / "case/note.json"
    assert not left.exists() or left.read_text() != (tmp_path / "sample/note.json").read_text()


def test_a_reader_that_writes_elsewhere_is_found(tmp_path: Path) -> None:
    code, said, errors = fuzz("litters", tmp_path, 0.1, "0")
    assert code == 1 and json.loads(said)["failed"] > 0 and "it has written files" in errors


def test_a_reader_with_a_traceback_is_found(tmp_path: Path) -> None:
    code, said, errors = fuzz("trips", tmp_path, 0.1, "0")
    assert code == 1 and json.loads(said)["failed"] > 0 and "a traceback" in errors
    assert list((tmp_path / "failures").glob("*.txt"))
