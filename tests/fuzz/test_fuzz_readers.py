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


@pytest.mark.parametrize("target", TARGETS)
def test_only_sentences_come_of_files_of_others(
    target: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seconds = float(os.environ.get("CLA_FUZZ_SECONDS", "60")) / len(TARGETS)
    seed = os.environ.get("CLA_FUZZ_SEED", "0")
    command = [sys.executable, str(HERE / "fuzz.py"), target, "--seconds", str(seconds), "--seed", seed]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        code = subprocess.run(
            [*command, "--least", str(LEAST), "--work", str(tmp_path / "work")],
            stdout=out, stderr=err, stdin=subprocess.DEVNULL, timeout=seconds + 900, check=False,
        ).returncode  # fmt: skip
    said = (tmp_path / "out").read_text().strip().splitlines()
    if code != 0:
        kept = Path(os.environ.get("CLA_FUZZ_KEEP", "fuzz-failures")).resolve() / f"{target}-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(tmp_path / "work", kept, ignore=shutil.ignore_patterns("hypothesis"))
        how = (
            f"died of {signal.Signals(-code).name}; {kept}/case is what it read" if code < 0 else f"see {kept}/failures"
        )
        pytest.fail(f"{target}: the fuzzer {how}\n{(tmp_path / 'err').read_text()[-6000:]}", pytrace=False)
    counts = json.loads(said[-1])
    assert counts["cases"] >= LEAST and counts["failed"] == 0, counts
    assert 0 < counts["refused"] <= counts["cases"], f"nothing was refused: {counts}"
    record_property("fuzzed", said[-1])
