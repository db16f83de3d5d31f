"""`cla demo`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import app, print_lines


@app.command(epilog="Example:  cla demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="A folder; what an earlier demo left in it is replaced.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=4, help="Simulated videos; five times as many to learn from.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the latent action model.")] = 600,
) -> None:
    """Go from simulated videos to a verified store and judged latent actions, on a CPU, in minutes."""
    from pipeline.demo import run_demo

    print_lines(run_demo(out, clips=clips, steps=steps))
