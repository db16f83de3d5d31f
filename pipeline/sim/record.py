"""Recorders: the tabletop world as a dataset's real files."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import FailedError, suggest
from pipeline.processes import worker_pool
from pipeline.sim.camera import check_view
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.tasks import Task, find_tasks

if TYPE_CHECKING:
    from pipeline.sim.episode import Episode

FORMATS = ("ssv2", "rgbd")
_OURS = {"ssv2": ("20bn-something-something-v2", "labels"), "rgbd": ("clips", "dataset.json", ".dataset.json.tmp")}


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """What every process that writes clips of one recording knows."""

    data_format: str
    out: Path
    seed: int
    tasks: tuple[Task, ...]
    views: tuple[str, ...]
    size: int
    fps: float
    camera_motion: bool
    distractors: bool
    perturb: float

    def write(self, index: int) -> dict[str, Any]:
        """Write clip `index`; its row of the recording's lists. A clip depends on nothing but this and its index."""
        from pipeline.sim import rgbd, ssv2

        episode = self._episode(index)
        if self.data_format == "ssv2":
            return ssv2.write_clip(self.out, episode)
        return rgbd.write_clip(self.out, episode, self.views, self.size, self.size, self.fps)

    def _episode(self, index: int) -> "Episode":
        from pipeline.sim.episode import demonstrate

        return demonstrate(
            self.seed,
            index,
            self.tasks,
            camera_motion=self.camera_motion,
            distractors=self.distractors,
            perturb=self.perturb,
        )


def record(
    data_format: str,
    out: Path,
    *,
    clips: int = 20,
    seed: int = 0,
    tasks: str = "all",
    views: Sequence[str] = ("agent",),
    size: int = 224,
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
        data_format: "ssv2" (the layout of `pipeline.sim.ssv2`) or "rgbd" (that of `pipeline.sim.rgbd`).
        out: a folder that does not exist or is empty. Clips appear in it whole or not at all.
        clips: how many, numbered from 0.
        seed: another seed, other clips.
        tasks: "all" or names with commas between; they take turns.
        views: for rgbd, the cameras recorded. ssv2 has the agent's view.
        size: for rgbd, pixels of each side. ssv2 is 320x240.
        fps: for rgbd, frames a second, above 0 and at most 20 (the default, one for each control step); no others are
            rendered. ssv2 has 12.
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
        if value < least:
            raise ValueError(f"Expected {name} of at least {least}, got {value}.")
    if not (math.isfinite(perturb) and perturb >= 0):
        raise ValueError(f"Expected perturb of at least 0 (0: no noise), got {perturb}.")
    for view in views:
        check_view(view)
    if not views or len(set(views)) != len(views):
        raise ValueError(f"Expected each view once, got {', '.join(views) or 'none'}.")
    if data_format == "ssv2" and "wrist" in views:
        raise ValueError("Format ssv2 has the agent's view only; record the wrist's as rgbd.")
    if camera_motion and "agent" not in views:
        raise ValueError("camera_motion moves the agent camera; record the agent's view, or leave camera_motion out.")
    recording = _Recording(
        data_format=data_format,
        out=out,
        seed=seed,
        tasks=find_tasks(tasks),
        views=tuple(views),
        size=size,
        fps=_check_fps(data_format, fps),
        camera_motion=camera_motion,
        distractors=distractors,
        perturb=perturb,
    )
    _make_room(out, data_format, overwrite)
    rows = []
    for row in _write_all(recording, clips, workers):
        rows.append(row)
        if progress is not None:
            progress()
    _write_lists(recording, tasks, rows)


def _check_fps(data_format: str, fps: float | None) -> float:
    if fps is None:
        return CONTROL_HZ
    if data_format != "rgbd":
        raise ValueError(f"Format {data_format} has frames a second of its own; leave fps out, or record as rgbd.")
    if not 0 < fps <= CONTROL_HZ:
        raise ValueError(f"Expected fps above 0 and at most {CONTROL_HZ}, got {fps:g}.")
    return CONTROL_HZ if fps == CONTROL_HZ else fps  # a whole number, however it was written: equal bytes


def _write_all(recording: _Recording, clips: int, workers: int) -> Iterator[dict[str, Any]]:
    """The rows of all clips in their order, written by this process or by `workers` others."""
    folders = {"ssv2": _OURS["ssv2"], "rgbd": ("clips",)}[recording.data_format]
    for folder in folders:
        (recording.out / folder).mkdir()
    if workers == 1:
        yield from map(recording.write, range(clips))
        return
    pool = worker_pool(min(workers, clips))
    try:
        yield from pool.map(recording.write, range(clips))
    except BrokenProcessPool:
        raise FailedError(
            f"A recording process died, perhaps for lack of memory: record {recording.out} again with --overwrite and "
            "fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_lists(recording: _Recording, tasks: str, rows: list[dict[str, Any]]) -> None:
    """The files that list the clips, last: their presence says that the recording is whole."""
    from pipeline.sim import rgbd, ssv2

    if recording.data_format == "ssv2":
        entries = [(ssv2.split_of(index), row) for index, row in enumerate(rows)]
        ssv2.write_labels(recording.out, entries, recording.tasks)
        return
    rgbd.write_index(
        recording.out,
        rows,
        seed=recording.seed,
        tasks=tasks,
        views=recording.views,
        height=recording.size,
        width=recording.size,
        fps=recording.fps,
        disturbances=[name for name in ("camera_motion", "distractors") if getattr(recording, name)],
        perturb=recording.perturb,
    )


def _make_room(out: Path, data_format: str, overwrite: bool) -> None:
    """An empty folder `out`. Only what a recorder wrote is ever removed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder.")
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    ours = {name for names in _OURS.values() for name in names}
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
