"""Starts the `cla` command in milliseconds: a process with everything imported, and nothing run, that forks.

It reads a JSON object a line: {"run": [arguments], "log": FILE, "faults": {...}} answers {"pid": ...} and
{"wait": pid, "timeout": seconds} answers {"code": ...}, negative for a signal, null where the time was up. Orphans of
its children become its own, so that whoever outlives a killed run is seen: {"left": true} answers their pids.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    from fault_injection import install

    import pipeline.cli
    import pipeline.extract.runner
    import pipeline.inspect_shards
    import pipeline.store.loader
    import pipeline.store.tar
    import pipeline.store.zarr_writer  # noqa: F401

    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would lose them"
    ended: dict[int, int] = {}
    _say({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        if "run" in order:
            pid = os.fork()
            if pid == 0:
                _child(order, install)
            _say({"pid": pid})
        elif "wait" in order:
            _say({"code": _wait(order["wait"], order["timeout"], ended)})
        else:
            _reap(ended)
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            _say({"left": [int(child) for child in children]})


def _child(order: dict, install) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        sys.argv = ["cla", *order["run"]]
        install(order["faults"])
        from pipeline.cli import main as command

        try:
            command()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  a child must never return to the zygote's loop
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _reap(ended: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended[pid] = os.waitstatus_to_exitcode(status)


def _wait(pid: int, timeout: float, ended: dict[int, int]) -> int | None:
    last = time.monotonic() + timeout
    while pid not in ended:
        _reap(ended)
        if time.monotonic() > last:
            return None
        time.sleep(0.002)
    return ended[pid]


def _say(answer: dict) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
