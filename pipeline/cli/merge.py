"""`cla merge`."""

from typing import Annotated

import typer

from pipeline.cli.groups import FAILED, TOO_MANY_BAD, Device, Json, app, print_json, print_lines


@app.command("merge", epilog="Example:  cla merge s3://bucket/ssv2;  cla merge part1 part2 --out stores/ssv2")
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Folders or fsspec URLs.")],
    out: Annotated[str, typer.Option(help="A new store of all shards; without it one store is finished.")] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Finish a store that `cla extract --partition` wrote in parts, or join stores of which each holds a part.

    Exit code 1 when clips are missing, 3 when too many are bad; index and digest are written all the same.
    """
    from pipeline.extract.merge import merge_stores

    summary = merge_stores(stores, out or None, device)
    if as_json:
        print_json(summary.as_json())
    else:
        print_lines(summary.lines())
    if summary.missing:
        raise typer.Exit(FAILED)
    if summary.too_many_bad:
        raise typer.Exit(TOO_MANY_BAD)
