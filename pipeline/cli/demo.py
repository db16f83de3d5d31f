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
    policy_clips: Annotated[int, typer.Option(min=4, help="Demonstrations that the policy learns from.")] = 48,
    policy_steps: Annotated[int, typer.Option(min=1, help="Training steps of the policy.")] = 800,
    episodes: Annotated[int, typer.Option(min=1, help="Of each task, in which the policy acts.")] = 5,
) -> None:
    """Go from simulated videos to a verified store, latent actions and a policy that acts, on a CPU, in minutes."""
    from pipeline.demo import DemoSizes, run_demo
    from pipeline.devices import one_thread

    sizes = DemoSizes(clips=clips, steps=steps, policy_clips=policy_clips, policy_steps=policy_steps, episodes=episodes)
    with one_thread():  # all its models are tiny, and on two cores a simulation runs beside them
        print_lines(run_demo(out, sizes))
