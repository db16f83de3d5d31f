"""`cla sim …`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import progress_bar, say, sim
from pipeline.config import RequestError


@sim.command("record", epilog="Example:  cla sim record --format ssv2 --clips 20 --seed 1 --out data/ssv2")
def sim_record(
    out: Annotated[Path, typer.Option(help="A new folder.")],
    data_format: Annotated[
        str, typer.Option("--format", help="rgbd, ssv2, libero, lerobot (v3.0), lerobot-v2.1 or aloha.")
    ] = "rgbd",
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other clips.")] = 0,
    tasks: Annotated[str, typer.Option(help="all, or names with commas: reach, push, pick, stack, place.")] = "all",
    view: Annotated[str, typer.Option(help="agent, wrist or agent,wrist; the format's own without it.")] = "",
    fps: Annotated[float | None, typer.Option(help="Frames a second, at most 20 (rgbd); 20 without it.")] = None,
    camera_motion: Annotated[bool, typer.Option("--camera-motion", help="The agent camera moves.")] = False,
    distractors: Annotated[bool, typer.Option("--distractors", help="Things move in view that take no part.")] = False,
    perturb: Annotated[float, typer.Option(min=0, help="Noise on what is done, not on what is recorded (DART).")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the bytes are the same.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write episodes of the tabletop world as a dataset's real files."""
    from pipeline.sim.record import record

    with progress_bar("record", clips) as advance:
        try:
            record(
                data_format,
                out,
                clips=clips,
                seed=seed,
                tasks=tasks,
                views=[name.strip() for name in view.split(",")] if view else None,
                fps=fps,
                camera_motion=camera_motion,
                distractors=distractors,
                perturb=perturb,
                workers=workers,
                overwrite=overwrite,
                progress=advance,
            )
        except ValueError as error:
            raise RequestError(str(error)) from None
    say(f"wrote {clips} clips to {out}")
