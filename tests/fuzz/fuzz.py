"""Fuzzes one kind of file in this process: `python tests/fuzz/fuzz.py TARGET --seconds 60 --seed 0 --work DIR`.

DIR/case is always the copy that is being read: if this process dies, it is what killed it. What is wrong goes to
DIR/failures, a folder each, with a traceback beside it; the last line of the output counts the cases, as JSON.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

MEMORY = 3 << 30
"""Bytes that a reader may take over what it had at the start."""

HUNG_S = 300
ROUND = 10
"""Cases that hypothesis draws from one seed; between rounds the time is looked at."""


class Fuzzer:
    def __init__(self, target: str, work: Path) -> None:
        from fuzz_targets import BROKEN, TARGETS

        self.target, self.work = {**TARGETS, **BROKEN}[target], work
        self.sample, self.case, self.failures = work / "sample", work / "case", work / "failures"
        self.counts = {"cases": 0, "refused": 0, "failed": 0}
        self.seen: set[str] = set()
        if not self.sample.exists():
            self.sample.mkdir(parents=True)
            self.target.make(self.sample)
        self.files = sorted(str(p.relative_to(self.sample)) for p in self.sample.rglob("*") if p.is_file())
        self.outside = self._outside()

    def _outside(self) -> list[str]:
        kept = {self.case, self.failures, self.sample, self.work / "hypothesis"}
        return sorted(
            str(p) for folder in self.work.iterdir() if folder not in kept for p in (folder, *folder.rglob("*"))
        )

    def run(self, draw: Any) -> None:
        """One case."""
        from fuzz_mutations import change_file, one_of
        from fuzz_targets import OURS, Refused, sentence

        shutil.rmtree(self.case, ignore_errors=True)
        shutil.copytree(self.sample, self.case)
        done = []
        for _ in range(1 + (one_of(draw, range(6)) == 0) + (one_of(draw, range(12)) == 0)):
            path = self.case / one_of(draw, self.files)
            if path.is_file():
                done.append(change_file(draw, path))
        before = self._listing()
        self.counts["cases"] += 1
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        try:
            self.target.read(self.case)
        except Refused:
            self.counts["refused"] += 1
        except OURS as error:
            self.counts["refused"] += 1
            try:
                sentence(error)
            except AssertionError:
                self._failed(done)
        except Exception:  # noqa: BLE001  # whatever else it is, it is what is looked for
            self._failed(done)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if self._listing() != before or self._outside() != self.outside:
            self._failed([*done, "it has written files"])

    def _listing(self) -> list[tuple[str, int, int]]:
        stats = [(str(p), p.lstat()) for p in sorted(self.case.rglob("*"))]
        return [(name, info.st_size, info.st_mtime_ns) for name, info in stats]

    def _failed(self, done: list[str]) -> None:
        self.counts["failed"] += 1
        frames = traceback.extract_tb(sys.exc_info()[2])
        mine = [f"{frame.filename}:{frame.lineno}" for frame in frames if "/pipeline/" in frame.filename]
        where = f"{sys.exc_info()[0]} {mine[-1:]}"
        if where in self.seen:
            return
        self.seen.add(where)
        folder = self.failures / f"{len(self.seen):03d}"
        shutil.copytree(self.case, folder)
        text = "\n".join([*done, traceback.format_exc()])
        folder.with_suffix(".txt").write_text(text, errors="backslashreplace")
        sys.stderr.write(text + "\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--least", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    work: Path = asked.work.resolve()
    for name in ("tmp", "cwd"):
        (work / name).mkdir(parents=True, exist_ok=True)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(work / "hypothesis")
    os.environ["TMPDIR"] = str(work / "tmp")
    os.chdir(work / "cwd")
    faulthandler.enable()
    warnings.simplefilter("ignore")

    from fuzz_targets import Refused
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    fuzzer = Fuzzer(asked.target, work)
    with contextlib.suppress(Refused):
        fuzzer.target.read(fuzzer.sample)  # which imports all that is needed
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    until, number = time.monotonic() + asked.seconds, 0

    while time.monotonic() < until or fuzzer.counts["cases"] < asked.least:

        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(asked.seed * 1_000_003 + number)
        @given(st.data())
        def case(data: Any) -> None:
            fuzzer.run(data.draw)

        case()
        number += 1
    shutil.rmtree(fuzzer.case, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(json.dumps({"target": asked.target, **fuzzer.counts, "peak_mb": peak}) + "\n")
    return 1 if fuzzer.counts["failed"] else 0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # what libraries do at their end, under a limit of memory, is not what is looked for
