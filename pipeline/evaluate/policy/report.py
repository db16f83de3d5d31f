"""Writes the films and the page of a judgement."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import FailedError, RequestError
from pipeline.evaluate.policy.judgement import Judgement
from pipeline.evaluate.policy.openloop import OpenLoop
from pipeline.evaluate.policy.openloop_page import render_open_loop
from pipeline.evaluate.policy.page import render_page
from pipeline.evaluate.policy.trials import TrialResult
from pipeline.evaluate.report import check_out


def check_outputs(html: Path | None, films: Path | None) -> None:
    """RequestError when a page or films could not be written; before the work, not after."""
    if html is not None:
        check_out(html, "--html")
    if films is not None:
        if films.exists() and not films.is_dir():
            raise RequestError(f"{films} is a file: name a folder for --films.")
        if not films.parent.is_dir():
            raise RequestError(f"There is no folder {films.parent}: create it, or name another for --films.")


def film_name(result: TrialResult) -> str:
    """The file of a film: task, seed, index, and whether it went well."""
    trial = result.trial
    outcome = "success" if result.success else "failure"
    return f"{trial.task.replace(':', '-').replace('/', '-')}-s{trial.seed}-{trial.index:06d}-{outcome}.mp4"


def write_outputs(judgement: Judgement, *, html: Path | None, films: Path | None) -> Iterator[Path]:
    """Write what is asked for; yields what was written. FailedError when a file cannot be."""
    if films is not None:
        with _explained(films):
            films.mkdir(exist_ok=True)
            for result in judgement.results:
                if result.film is not None:
                    (films / film_name(result)).write_bytes(result.film)
        yield films
    if html is not None:
        page = render_page(judgement)
        with _explained(html):
            html.write_text(page, encoding="utf-8", newline="\n")
        yield html


def write_open_loop(found: OpenLoop, html: Path | None) -> Iterator[Path]:
    """Write the page where it is asked for; yields what was written. FailedError when it cannot be."""
    if html is not None:
        page = render_open_loop(found)
        with _explained(html):
            html.write_text(page, encoding="utf-8", newline="\n")
        yield html


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an OSError into a sentence."""
    try:
        yield
    except OSError as error:
        raise FailedError(f"{path} cannot be written: {error.strerror or error}.") from error
