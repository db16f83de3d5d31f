"""`cla inspect-shards`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import FAILED, Json, app, print_json, print_lines, say


@app.command("inspect-shards", epilog="Example:  cla inspect-shards stores/ssv2 --verify --html ssv2.html")
def inspect_shards(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A folder or fsspec URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every checksum and rule.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write a Rerun recording (.rrd), with the [viz] extra.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a store holds, what it was made from, and whether it is whole. Exit code 1 if anything is damaged."""
    from pipeline.inspect_shards import inspect_store
    from pipeline.inspect_text import summary_lines

    summary = inspect_store(store, verify=verify)
    if html is not None:
        from pipeline.inspect_html import write_page

        write_page(store, summary, html)
        say(f"wrote {html}")
    if rerun is not None:
        from pipeline.inspect_rerun import write_recording

        write_recording(store, rerun)
        say(f"wrote {rerun}")
    if as_json:
        print_json(summary.as_json())
    else:
        print_lines(summary_lines(summary))
    if summary.damages or summary.unread:
        raise typer.Exit(FAILED)
