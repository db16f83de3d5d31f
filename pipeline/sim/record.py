"""Recorders: the tabletop world as a dataset's real files."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.config import FailedError, suggest
from pipeline.processes import worker_pool
from pipeline.sim.camera import check_view
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.tasks import find_tasks

if TYPE_CHECKING:
    from pipeline.sim.plan import Format, Plan

_MODULES = {
    "ssv2": "pipeline.sim.ssv2",
    "rgbd": "pipeline.sim.rgbd",
    "libero": "pipeline.sim.libero",
    "lerobot": "pipeline.sim.lerobot_v30",
    "lerobot-v2.1": "pipeline.sim.lerobot_v21",
    "aloha": "pipeline.sim.aloha",
}
FORMATS = tuple(_MODULES)
_LEROBOT = ("meta", "data", "videos", ".parts")
_OURS = {
    "ssv2": ("20bn-something-something-v2", "labels"),
    "rgbd": ("clips", "dataset.json", ".dataset.json.tmp"),
    "libero": ("libero_tabletop", ".parts"),
    "lerobot": _LEROBOT,
    "lerobot-v2.1": _LEROBOT,
    "aloha": ("sim_tabletop_scripted",),
}
_FIXED_SIZE = ("ssv2",)
_VIDEOS = ("lerobot", "lerobot-v2.1")


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Writes clips of one recording in any process."""

    data_format: str
    plan: "Plan"

    def __call__(self, index: int) -> dict[str, Any]:
        return _module(self.data_format).write(self.plan, index)


def record(
    data_format: str,
    out: Path,
    *,
    clips: int = 20,
    seed: int = 0,
    tasks: str = "all",
    views: Sequence[str] | None = None,
    size: int | None = None,
    fps: float | None = None,
    camera_motion: bool = False,
    distractors: bool = False,
    perturb: float = 0.0,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[], object] | None = None,
) -> None:
    """Write `clips` demonstrations under `out`. Equal arguments give equal bytes, whatever `workers`.

    Args:
        data_format: one of `FORMATS`; each is described in its module, `pipeline.sim.<name>`.
        out: a folder that does not exist or is empty. Clips appear in it whole or not at all.
        clips: how many, numbered from 0.
        seed: another seed, other clips.
        tasks: "all" or names with commas between; they take turns.
        views: the cameras recorded, by default the format's own. ssv2 has the agent's only, libero always both.
        size: pixels of each side, for aloha the height of 4:3 pictures; by default the format's own. ssv2 is 320x240.
        fps: for rgbd, frames a second, above 0 and at most 20 (the default, one for each control step); no others are
            rendered. ssv2 has 12, the others 20.
        camera_motion: the agent camera moves (see `pipeline.sim.camera_motion`).
        distractors: things move in view that take no part (see `pipeline.sim.distractors`).
        perturb: the scale of the noise on what the expert does (see `pipeline.sim.perturb`).
        workers: processes; 1 is this one.
        overwrite: replace an earlier recording in `out`; anything else in there is refused.
        progress: called after each clip.

    Raises:
        ValueError: an unknown format, task or view, a number out of range, or an `out` that is not free.
        FailedError: a process died.
    """
    if data_format not in FORMATS:
        hint = suggest(data_format, FORMATS)
        raise ValueError(f"Unknown format {data_format!r}; choose from {', '.join(FORMATS)}.{hint}")
    for name, value, least in (("clips", clips, 1), ("seed", seed, 0), ("size", size, 14), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"Expected {name} of at least {least}, got {value}.")
    if not (math.isfinite(perturb) and perturb >= 0):
        raise ValueError(f"Expected perturb of at least 0 (0: no noise), got {perturb}.")
    if size is not None and data_format in _FIXED_SIZE:
        raise ValueError(f"Format {data_format} has pictures of a size of its own; leave size out, or record as rgbd.")
    if size is not None and size % 2 and data_format in _VIDEOS:
        raise ValueError(f"Format {data_format} has videos, of an even number of pixels; got a size of {size}.")
    from pipeline.sim.plan import Plan

    module = _module(data_format)
    height, width = module.SIZES
    plan = Plan(
        out=out,
        seed=seed,
        task_names=tasks,
        tasks=find_tasks(tasks),
        views=_check_views(data_format, module.VIEWS if views is None else tuple(views), camera_motion),
        height=size or height,
        width=size * width // height if size else width,
        fps=_check_fps(data_format, fps),
        camera_motion=camera_motion,
        distractors=distractors,
        perturb=perturb,
    )
    _make_room(out, overwrite)
    module.prepare(plan)
    rows = []
    for row in _write_all(_Writer(data_format=data_format, plan=plan), clips, workers):
        rows.append(row)
        if progress is not None:
            progress()
    module.finish(plan, rows)


def _module(data_format: str) -> "Format":
    return cast("Format", import_module(_MODULES[data_format]))


def _check_views(data_format: str, views: tuple[str, ...], camera_motion: bool) -> tuple[str, ...]:
    for view in views:
        check_view(view)
    if not views or len(set(views)) != len(views):
        raise ValueError(f"Expected each view once, got {', '.join(views) or 'none'}.")
    if data_format == "ssv2" and "wrist" in views:
        raise ValueError("Format ssv2 has the agent's view only; record the wrist's in another format.")
    if data_format == "libero" and len(views) < 2:
        raise ValueError("Format libero always has both views, agentview and eye_in_hand: leave views out.")
    if camera_motion and "agent" not in views:
        raise ValueError("camera_motion moves the agent camera; record the agent's view, or leave camera_motion out.")
    return views


def _check_fps(data_format: str, fps: float | None) -> float:
    if fps is None:
        return CONTROL_HZ
    if data_format != "rgbd":
        raise ValueError(f"Format {data_format} has frames a second of its own; leave fps out, or record as rgbd.")
    if not 0 < fps <= CONTROL_HZ:
        raise ValueError(f"Expected fps above 0 and at most {CONTROL_HZ}, got {fps:g}.")
    return CONTROL_HZ if fps == CONTROL_HZ else fps  # a whole number, however it was written: equal bytes


def _write_all(writer: _Writer, clips: int, workers: int) -> Iterator[dict[str, Any]]:
    """The rows of all clips in their order, written by this process or by `workers` others."""
    if workers == 1:
        yield from map(writer, range(clips))
        return
    pool = worker_pool(min(workers, clips))
    try:
        yield from pool.map(writer, range(clips))
    except BrokenProcessPool:
        raise FailedError(
            f"A recording process died, perhaps for lack of memory: record {writer.plan.out} again with --overwrite "
            "and fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_room(out: Path, overwrite: bool) -> None:
    """An empty folder `out`. Only what a recorder wrote is ever removed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder.")
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = {name for names in _OURS.values() for name in names}
    if "meta" not in there:  # a recorder's `data` and `videos` never stand alone
        ours -= {"data", "videos"}
    foreign = [name for name in there if name not in ours]
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]!r}, which no recorder wrote; name a new folder.")
    if there and not overwrite:
        raise ValueError(f"{out} holds a recording already; name a new folder, or replace it with --overwrite.")
    for name in there:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    out.mkdir(parents=True, exist_ok=True)
