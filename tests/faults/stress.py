"""`make stress`: extraction of 200 clips with 2 decoding processes, killed and resumed for half an hour.

Clips are generated (the tabletop world, depth and cameras from its sensors). Runs end by SIGKILL or SIGTERM to the run,
or by SIGKILL to one of its decoders, at seeded times. After each, every committed shard is checked against the
checksums with which it was first seen. When a store is complete and verified, the next one begins; the last is
completed undisturbed. Prints one JSON object: kills, clips lost (committed once and not there later), and the digests,
which must be one.

    python tests/faults/stress.py --minutes 30 --clips 200 --out /tmp/stress
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from fault_harness import MANIFEST, Run, Zygote, decoders_of  # noqa: E402

from pipeline.inspect_shards import inspect_store  # noqa: E402
from pipeline.store.layout import StoreLayout  # noqa: E402
from pipeline.store.verify import verify_shard  # noqa: E402

RECIPE = ["--recipe", "tiny", "geometry.source=sensor", "frames.max=2", "points.count=256", "points.min_points=64"]
RECIPE += ["concerto.weights=random:0", "frames.size=56", "store.shard_mb=0.7"]


class Stress:
    """The stores of a stress run, one after the other."""

    def __init__(self, out: Path, clips: int, workers: int, seed: int) -> None:
        self.out, self.clips, self.workers, self.dice = out, clips, workers, random.Random(seed)
        self.zygote = Zygote()
        self.kills = {"SIGKILL": 0, "SIGTERM": 0, "decoder": 0}
        self.runs = self.resumed = self.lost = self.completed = 0
        self.digests: set[str] = set()
        self.committed: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.worst: list[str] = []

    def store(self) -> Path:
        return self.out / f"store-{self.completed}"

    def start(self) -> Run:
        options = [f"dataset.clips={self.clips}", "dataset.seed=3", *RECIPE]
        resume = ["--resume"] if (self.store() / MANIFEST).exists() else []
        self.runs += 1
        self.resumed += bool(resume)
        command = ["extract", "--dataset", "tabletop", "--out", str(self.store()), "--workers", str(self.workers)]
        log = self.out / f"{self.completed}-{self.runs}.log"
        pid = self.zygote.ask(run=[*command, "--device", "cpu", *resume, *options], log=str(log), faults={})["pid"]
        return Run(self.zygote, pid, log)

    def disturb(self, run: Run, after: float) -> None:
        """End a run in some way after some seconds; 0 where it ended by itself before."""
        how = self.dice.choices(tuple(self.kills), weights=(3, 1, 1))[0]
        last = time.monotonic() + after
        while time.monotonic() < last:
            if self.zygote.ask(wait=run.pid, timeout=0)["code"] is not None:
                break
            time.sleep(0.1)
        try:
            victims = decoders_of(run.pid) if how == "decoder" else [run.pid]
            if not victims:
                how, victims = "SIGKILL", [run.pid]
            os.kill(self.dice.choice(list(victims)), signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            return
        self.kills[how] += 1
        code = run.ended(300)
        if code not in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM) or "Traceback" in run.said():
            self.worst.append(f"exit code {code} after {how}: {run.said()[-2000:]}")
        last = time.monotonic() + 60
        while self.zygote.ask(left=True)["left"] and time.monotonic() < last:
            time.sleep(0.05)

    def check(self) -> None:
        """Everything that was ever committed is there, unchanged and whole."""
        if not (self.store() / MANIFEST).exists():
            return
        layout = StoreLayout.open(str(self.store()))
        found = {}
        for sidecar in layout.sidecars():
            digest = sidecar.file.sha256 if sidecar.file else ""
            found[sidecar.shard] = (digest, tuple(row.digest for row in sidecar.rows))
            if sidecar.shard not in self.committed:
                self.worst += [str(damage) for damage in verify_shard(layout, sidecar)]
        for shard, content in self.committed.items():
            if found.get(shard) != content:
                self.lost += len(content[1])
        self.committed = found

    def finish(self) -> None:
        """Verify a complete store, and go on to the next."""
        summary = inspect_store(str(self.store()), verify=True)
        self.worst += [f"{damage.shard}: {damage.problem}" for damage in summary.damages]
        self.lost += self.clips - summary.clips
        self.digests.add(summary.digest)
        shutil.rmtree(self.store())
        self.completed += 1
        self.committed = {}

    def run(self, minutes: float) -> dict[str, object]:
        """Kill and resume for that long, then let the last store be completed."""
        begin, pause = time.monotonic(), 0.0
        while time.monotonic() - begin < minutes * 60:
            run = self.start()
            self.disturb(run, self.dice.uniform(0.3, 1.0) * (pause or 10.0))
            before = len(self.committed)
            self.check()
            # long enough to commit something now and then, short enough to be killed often
            pause = max(2.0, pause * 0.9) if len(self.committed) > before else min(120.0, (pause or 10.0) * 1.5)
            if self.zygote.ask(wait=run.pid, timeout=0)["code"] == 0:
                self.finish()
        disturbed = time.monotonic() - begin
        run = self.start()
        code = run.ended(3600)
        if code:
            self.worst.append(f"the last run ended with exit code {code}: {run.said()[-2000:]}")
        self.check()
        self.finish()
        self.zygote.close()
        return {
            "minutes": round(disturbed / 60, 1),
            "clips": self.clips,
            "workers": self.workers,
            "runs": self.runs,
            "resumed": self.resumed,
            "kills": self.kills,
            "stores_completed": self.completed,
            "lost_clips": self.lost,
            "digests": sorted(self.digests),
            "problems": self.worst,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    stress = Stress(arguments.out, arguments.clips, arguments.workers, arguments.seed)
    result = stress.run(arguments.minutes)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(result["lost_clips"] or result["problems"] or len(stress.digests) != 1))


if __name__ == "__main__":
    main()
