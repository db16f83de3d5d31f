"""`cla repair`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import FAILED, Device, Json, app, print_json, print_lines


@app.command(epilog="Example:  cla repair /scratch/ssv2-train --root /data/ssv2")
def repair(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A folder or fsspec URL.")],
    root: Annotated[Path | None, typer.Option(help="Where the dataset's files are now.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes; 0: in this one.")] = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Extract again what is damaged or lost in a store, and only that. Exit code 1 if something is still wrong."""
    from pipeline.extract.repair import run_repair

    summary = run_repair(store, root=root, device=device, workers=workers)
    if as_json:
        print_json(summary.as_json())
    else:
        print_lines(summary.lines())
    if summary.left:
        raise typer.Exit(FAILED)
