"""Extraction under faults: runs of the real command that are killed or fail, and what must hold of the store after."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store_factory import folder_bytes
from video_factory import disc_video

from pipeline.inspect_shards import inspect_store
from pipeline.store.layout import MANIFEST, StoreLayout
from pipeline.store.verify import verify, verify_shard

REPOSITORY = Path(__file__).parents[1]
LONGEST_S = 120.0
"""Of one run, on a machine that does other things: then it hangs."""

CLIPS = 6
SMALL = [
    "frames.max=2",
    "frames.size=56",
    "points.count=256",
    "points.min_points=64",
    "vggt.weights=random:0",
    "concerto.weights=random:0",
    "store.shard_mb=0.26",  # two clips a shard
]


def small_videos(root: Path, clips: int = CLIPS) -> Path:
    """Videos of six frames."""
    for i in range(clips):
        disc_video(root / f"{i:03d}.mp4", seed=i)
    return root


class Zygote:
    """`tests/fault_zygote.py`, which starts a run of `cla` in milliseconds."""

    def __init__(self) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        self._process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests/fault_zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **one, "JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTHONPATH": path},
        )
        self._answer()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for pid in self.ask(left=True)["left"]:
            os.kill(pid, 9)
        self._process.kill()
        self._process.communicate(timeout=60)


@dataclass
class Run:
    """A run of `cla` that was started."""

    zygote: Zygote
    pid: int
    log: Path

    def ended(self, timeout: float = LONGEST_S) -> int:
        """Its exit code, negative for a signal. A run that hangs is killed and fails the test."""
        code = self.zygote.ask(wait=self.pid, timeout=timeout)["code"]
        if code is None:
            os.kill(self.pid, 9)
            raise AssertionError(f"a run hangs; it wrote:\n{self.said()}")
        return int(code)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def sentence(self) -> str:
        """What it said in the end; a traceback is none."""
        said = self.said()
        assert "Traceback" not in said, said
        answers = [line for line in said.splitlines() if line.startswith(("error:", "Interrupted."))]
        return answers[-1] if answers else ""


@dataclass
class Bench:
    """One format's undisturbed store, and runs that are disturbed."""

    zygote: Zygote
    videos: Path
    scratch: Path
    store_format: str
    whole: Path = field(init=False)
    digest: str = field(init=False)
    seconds: float = field(init=False)
    commits: int = field(init=False)
    writes: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.scratch / "whole"
        counted = self.scratch / "counted"
        start = time.perf_counter()
        run = self.start(self.whole, store=str(self.whole), count=str(counted))
        assert run.ended() == 0, run.said()
        self.seconds = time.perf_counter() - start
        self.commits, self.writes = (int(text) for text in counted.read_text().split())
        summary = inspect_store(str(self.whole), verify=True)
        assert summary.verified and summary.clips == CLIPS, summary
        self.digest = summary.digest

    def start(self, out: Path, *options: str, workers: int = 0, **faults: Any) -> Run:
        """Begin to extract the videos to `out`."""
        command = ["extract", "--dataset", "video", "--root", str(self.videos), "--out", str(out), "--recipe", "tiny"]
        command += ["--format", self.store_format, "--workers", str(workers), "--device", "cpu", *options, *SMALL]
        return self.run(out, *command, **faults)

    def run(self, out: Path, *command: str, **faults: Any) -> Run:
        """Begin any command that has to do with the store `out`."""
        log = out.with_name(f"{out.name}.log")
        pid = self.zygote.ask(run=command, log=str(log), faults=faults)["pid"]
        return Run(self.zygote, pid, log)

    def check_recovery(self, out: Path, *, clean: bool = False, **rerun: Any) -> None:
        """What must hold after a fault, whatever it was.

        Every committed shard is whole; a rerun completes the store and touches none of them; the store then verifies
        and equals the undisturbed one byte for byte. `clean` asks that the store verifies even before the rerun.
        """
        before = self.committed(out)
        if clean and (out / MANIFEST).exists():
            damages = verify(StoreLayout.open(str(out)))
            assert not damages, "\n".join(map(str, damages))
        again = self.start(out, *(["--resume"] if (out / MANIFEST).exists() else []), **rerun)
        code = again.ended()
        assert code == 0, (code, again.said())
        after = {path: (out / path).stat() for path in before}
        assert {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in after.items()} == before
        assert verify(StoreLayout.open(str(out))) == []
        assert inspect_store(str(out)).digest == self.digest
        assert folder_bytes(out) == folder_bytes(self.whole)

    def committed(self, out: Path) -> dict[str, tuple[int, int]]:
        """The files of committed shards, each shard checked: inode and time of the last change by name."""
        if not (out / MANIFEST).exists():
            return {}
        layout = StoreLayout.open(str(out))
        found = {}
        for sidecar in layout.sidecars():
            assert list(verify_shard(layout, sidecar)) == []
            for name in (f"shards/{sidecar.shard}.json", layout.data_name(sidecar.shard)):
                stat = (out / name).stat()
                found[name] = (stat.st_ino, stat.st_mtime_ns)
        return found

    def no_process_is_left(self) -> None:
        """Whoever a killed run had started has ended."""
        last = time.monotonic() + 30
        while left := self.zygote.ask(left=True)["left"]:
            assert time.monotonic() < last, f"processes {left} outlive the run that started them"
            time.sleep(0.05)


@contextmanager
def bench(zygote: Zygote, scratch: Path, store_format: str, videos: Path) -> Iterator[Bench]:
    scratch.mkdir(parents=True, exist_ok=True)
    yield Bench(zygote, videos, scratch, store_format)


def decoders_of(pid: int) -> Sequence[int]:
    """The decoding processes of a run."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in children.split() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
