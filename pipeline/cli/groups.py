"""The `cla` command itself: its groups, its exit codes, and how every command answers.

Exit codes: 0 done; 1 failed; 2 the request was wrong; 3 finished, but too many samples were bad; 130 interrupted.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
import typer.core

from data_specs.shards import Format
from pipeline.config import FailedError, RequestError, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

FAILED, WRONG_REQUEST, TOO_MANY_BAD, INTERRUPTED = 1, 2, 3, 130


class Answering(typer.core.TyperGroup):
    """A group that answers what a user can cause with a sentence and an exit code, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RequestError as error:
            say(f"error: {error}")
            raise typer.Exit(WRONG_REQUEST) from None
        except FailedError as error:
            say(f"error: {error}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="cla",
    cls=Answering,
    help="Latent actions from video in 3D: extract frozen features once, then train from shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
sim = typer.Typer(
    help="The simulated tabletop world.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
evaluate = typer.Typer(
    help="Judge what a run has learned.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
bench = typer.Typer(help="Measure, print tables, write JSON.", no_args_is_help=True, rich_markup_mode=None)
train = typer.Typer(help="Train a model from a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sim, name="sim")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")]


def progress_bar(title: str, total: int) -> "AbstractContextManager[Any]":
    """A progress bar for `total` pieces of work: a context that gives `advance()`."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    return bar()


def counting_bar(title: str) -> "AbstractContextManager[Any]":
    """A progress bar for work that says itself how much there is: a context that gives `progress(done, total)`."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    return bar()


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def print_lines(lines: "Iterable[str]") -> None:
    """Lines on stdout."""
    for line in lines:
        sys.stdout.write(line + "\n")


def say(text: str) -> None:
    """A line on stderr, where everything goes that is not the answer."""
    sys.stderr.write(text + "\n")


def run_mode(resume: bool, overwrite: bool) -> Any:
    """What to do with what is already there: new, resume or overwrite.

    Raises:
        RequestError: Both were given.
    """
    if resume and overwrite:
        raise RequestError("--resume keeps what is there and --overwrite removes it: give one of them.")
    return "resume" if resume else "overwrite" if overwrite else "new"


def split_assignments(assignments: "Sequence[str]") -> tuple[dict[str, str], list[str]]:
    """Overrides as the options of a dataset (`dataset.OPTION=VALUE`) and the keys of a recipe (all others)."""
    options = [a for a in assignments if a.startswith("dataset.") and "=" in a]
    keys = [a for a in assignments if a not in options]
    return dict(a.removeprefix("dataset.").split("=", 1) for a in options), keys


def check_format(name: str) -> Format:
    """A store's format; RequestError when there is none of that name."""
    choices = get_args(Format)
    if name not in choices:
        raise RequestError(f"--format {name} is unknown: expected {' or '.join(choices)}.{suggest(name, choices)}")
    return cast(Format, name)
