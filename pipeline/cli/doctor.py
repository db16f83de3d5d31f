"""`cla doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.groups import FAILED, Json, app, print_json, print_lines
from pipeline.config import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.doctor import Finding


@app.command(epilog="Example:  cla doctor --json")
def doctor(
    folder: Annotated[Path, typer.Option(help="Where stores will be written.")] = Path(),
    as_json: Json = False,
) -> None:
    """Check versions, device, optional packages, weights and disk; every line is fine or names its remedy."""
    from pipeline.doctor import examine

    if not folder.is_dir():
        raise RequestError(f"--folder {folder} is not a folder: create it, or name one that is there.")
    findings = examine(folder)
    if as_json:
        print_json({"findings": [finding.as_json() for finding in findings]})
    else:
        print_lines(_doctor_lines(findings))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(FAILED)


def _doctor_lines(findings: "Iterable[Finding]") -> "Iterable[str]":
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    for finding in findings:
        yield f"{marks[finding.state]}  {finding.what:32} {finding.found}"
        if finding.remedy:
            yield f"      {'':32} -> {finding.remedy}"
