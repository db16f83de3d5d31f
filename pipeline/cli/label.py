"""`cla label`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import Device, Json, app, counting_bar, print_json, print_lines, run_mode


@app.command(epilog="Example:  cla label --run runs/laq --store stores/ssv2 --out codes.parquet --embeddings")
def label(
    run: Annotated[Path, typer.Option(help="A run of `cla train laq`.")],
    store: Annotated[str, typer.Option(help="A folder or fsspec URL.")],
    out: Annotated[Path, typer.Option(help="The Parquet file: a row a pair.")],
    split: Annotated[str | None, typer.Option(help="One split only; all without it.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Keep the latents beside their codes.")] = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted labelling.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write the 4 codes of every pair of frames of a store, at the offset the run was trained with."""
    mode = run_mode(resume, overwrite)
    from pipeline.devices import choose_device
    from pipeline.evaluate.encoding import Encoder
    from pipeline.label import label as write_labels

    encoder = Encoder.open(run, store, split=split, device=choose_device(device))
    with counting_bar("label") as progress:
        summary = write_labels(encoder, out, embeddings=embeddings, mode=mode, progress=progress)
    if as_json:
        print_json(summary.as_json())
    else:
        print_lines(summary.lines())
