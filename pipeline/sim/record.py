"""Recorders: the tabletop world as a dataset's real files."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import suggest

FORMATS = ("ssv2", "rgbd")
_OURS = {"ssv2": ("20bn-something-something-v2", "labels"), "rgbd": ("clips", "dataset.json", ".dataset.json.tmp")}


def record(
    data_format: str,
    out: Path,
    *,
    clips: int = 20,
    seed: int = 0,
    tasks: str = "all",
    views: Sequence[str] = ("agent",),
    size: int = 224,
    overwrite: bool = False,
    progress: Callable[[], object] | None = None,
) -> None:
    """Write `clips` demonstrations under `out`. Equal arguments give equal bytes.

    Args:
        data_format: "ssv2" (the layout of `pipeline.sim.ssv2`) or "rgbd" (that of `pipeline.sim.rgbd`).
        out: a folder that does not exist or is empty. Clips appear in it whole or not at all.
        clips: how many, numbered from 0.
        seed: another seed, other clips.
        tasks: "all" or names with commas between; they take turns.
        views: for rgbd, the cameras recorded. ssv2 has the agent's view.
        size: for rgbd, pixels of each side. ssv2 is 320x240.
        overwrite: replace an earlier recording in `out`; anything else in there is refused.
        progress: called after each clip.

    Raises:
        ValueError: an unknown format, task or view, a number out of range, or an `out` that is not free.
    """
    from pipeline.sim.camera import check_view
    from pipeline.sim.tasks import find_tasks

    if data_format not in FORMATS:
        hint = suggest(data_format, FORMATS)
        raise ValueError(f"Unknown format {data_format!r}; choose from {', '.join(FORMATS)}.{hint}")
    for name, value, least in (("clips", clips, 1), ("seed", seed, 0), ("size", size, 14)):
        if value < least:
            raise ValueError(f"Expected {name} of at least {least}, got {value}.")
    for view in views:
        check_view(view)
    chosen = find_tasks(tasks)
    _make_room(out, data_format, overwrite)
    if data_format == "ssv2":
        _record_ssv2(out, clips, seed, chosen, progress)
    else:
        _record_rgbd(out, clips, seed, tasks, chosen, views, size, progress)


def _record_ssv2(
    out: Path, clips: int, seed: int, tasks: tuple[Any, ...], progress: Callable[[], object] | None
) -> None:
    from pipeline.sim import ssv2
    from pipeline.sim.episode import demonstrate

    for folder in (ssv2.VIDEOS, ssv2.LABELS):
        (out / folder).mkdir()
    entries = []
    for index in range(clips):
        entries.append((ssv2.split_of(index), ssv2.write_clip(out, demonstrate(seed, index, tasks))))
        if progress is not None:
            progress()
    ssv2.write_labels(out, entries, tasks)


def _record_rgbd(
    out: Path,
    clips: int,
    seed: int,
    names: str,
    tasks: tuple[Any, ...],
    views: Sequence[str],
    size: int,
    progress: Callable[[], object] | None,
) -> None:
    from pipeline.sim import rgbd
    from pipeline.sim.episode import demonstrate

    (out / rgbd.CLIPS).mkdir()
    rows = []
    for index in range(clips):
        rows.append(rgbd.write_clip(out, demonstrate(seed, index, tasks), views, size, size))
        if progress is not None:
            progress()
    rgbd.write_index(out, rows, seed, names, views, size, size)


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
