"""`cla plan`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import Device, Json, app, check_format, print_json, print_lines, split_assignments
from pipeline.config import RequestError, override
from pipeline.recipes import EXTRACT, extract_recipe


@app.command(epilog="Example:  cla plan --dataset ssv2 --recipe full --fps 3 --deadline 24")
def plan(
    dataset: Annotated[str, typer.Option(help="As `cla extract`; ssv2 may be absent.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As `cla extract`.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where its files are.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "full",
    split: Annotated[str | None, typer.Option(help="One split only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N clips.")] = None,
    frames_per_clip: Annotated[int | None, typer.Option(min=1, help="frames.max=N.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="frames.fps=F frames.max=0.")] = None,
    deadline: Annotated[float | None, typer.Option(min=0.01, help="Hours.")] = None,
    frames_per_second: Annotated[float | None, typer.Option(min=0.001, help="Known: runs nothing.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, help="N' a frame, if known.")] = None,
    store_format: Annotated[str, typer.Option("--format", help="zarr or webdataset.")] = "zarr",
    device: Device = "auto",
    probe_seconds: Annotated[float, typer.Option(min=0.1, help="To measure for.")] = 60.0,
    sample: Annotated[int, typer.Option(min=1, help="Clips to decode.")] = 8,
    as_json: Json = False,
) -> None:
    """Foresee an extraction: clips, frames, bytes by array, device-hours, workers for a deadline.

    With --root clips are listed and a few decoded. Runs the recipe's models for a short while (random weights where
    the real ones are missing). Writes nothing.
    """
    from pipeline.plan.report import PlanRequest, make_plan

    options, keys = split_assignments(overrides or [])
    if frames_per_clip is not None and fps is not None:
        raise RequestError("--frames-per-clip and --fps both say which frames are taken: give one of them.")
    if frames_per_clip is not None:
        keys.append(f"frames.max={frames_per_clip}")
        if frames_per_clip == 1:
            keys.append("frames.min=1")
    if fps is not None:
        keys += [f"frames.fps={fps}", "frames.max=0"]
    found = make_plan(
        PlanRequest(
            dataset=dataset,
            root=root,
            split=split,
            options=options,
            limit=limit,
            recipe=override(extract_recipe(recipe), keys),
            form=check_format(store_format),
            device=device,
            deadline=deadline,
            frames_per_s=frames_per_second,
            tokens=tokens,
            seconds=probe_seconds,
            sample=sample,
        )
    )
    if as_json:
        print_json(found.as_json())
    else:
        print_lines(found.lines())
