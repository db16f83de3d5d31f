"""`cla extract`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import (
    TOO_MANY_BAD,
    Device,
    Json,
    app,
    check_format,
    print_json,
    print_lines,
    run_mode,
    split_assignments,
)
from pipeline.config import RequestError, override
from pipeline.recipes import EXTRACT, extract_recipe


@app.command(
    epilog="Example:  cla extract --dataset ssv2 --root /data/ssv2 --out s3://bucket/ssv2 --recipe full frames.fps=3"
)
def extract(
    dataset: Annotated[str, typer.Option(help="aloha, lerobot, libero, ssv2, tabletop or video.")],
    out: Annotated[str, typer.Option(help="The store: a new folder or fsspec URL.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the dataset's files are.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "full",
    split: Annotated[str | None, typer.Option(help="One split only; all without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N clips only.")] = None,
    store_format: Annotated[str, typer.Option("--format", help="zarr or webdataset.")] = "zarr",
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes; 0: in this one.")] = 1,
    device: Device = "auto",
    partition: Annotated[
        str, typer.Option(metavar="I/N", help="Write the I-th of N parts of the store; others write the rest.")
    ] = "",
    engine: Annotated[str, typer.Option(help="local, or ray: actors in a cluster.")] = "local",
    ray_address: Annotated[str, typer.Option(help="Of a Ray cluster; empty: one on this machine.")] = "",
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors; one a GPU without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the store.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store.")] = False,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="With --resume: try bad clips again.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run the frozen models over a dataset, once, into a store of shards.

    Overrides are dotted recipe keys (--print-config shows all), or dataset.OPTION=VALUE for the dataset.
    """
    options, keys = split_assignments(overrides or [])
    chosen = override(extract_recipe(recipe), keys)
    if print_config:
        print_json(chosen.model_dump(mode="json"))
        return
    if not out:
        raise RequestError("Missing --out: where the store is to be, a new folder or fsspec URL.")
    form = check_format(store_format)
    if engine not in ("local", "ray"):
        raise RequestError(f"--engine {engine} is unknown: expected local or ray.")
    if engine == "local" and (ray_address or actors):
        raise RequestError("--ray-address and --actors are of --engine ray: give it with them.")
    mode = run_mode(resume, overwrite)
    if retry_rejected and not resume:
        raise RequestError("--retry-rejected goes on with an existing store: give it together with --resume.")

    from pipeline.extract.partition import Partition
    from pipeline.extract.progress import reporter
    from pipeline.extract.runner import ExtractRequest, run_extract

    request = ExtractRequest(
        dataset=dataset,
        root=root,
        split=split,
        options=options,
        limit=limit,
        out=out,
        format=form,
        recipe=chosen,
        workers=workers,
        device=device,
        mode=mode,
        retry_rejected=retry_rejected,
        engine="ray" if engine == "ray" else "local",
        ray_address=ray_address,
        actors=actors,
        partition=Partition.parse(partition) if partition else None,
    )
    with reporter() as report:
        summary = run_extract(request, report)
    if as_json:
        print_json(summary.as_json())
    else:
        print_lines(summary.lines())
    if summary.too_many_bad:
        raise typer.Exit(TOO_MANY_BAD)
