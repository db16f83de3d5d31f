"""Says how many cases there were."""

import json

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line a kind of file, and their sum."""
    total = 0
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "fuzzed":
                counts = json.loads(str(value))
                total += counts["cases"]
                terminalreporter.write_line(
                    f"  {counts['target']:14s} {counts['cases']:7d} cases, {counts['refused']:7d} of them refused,"
                    f" {counts['peak_mb']} MB at most"
                )
    if total:
        terminalreporter.write_line(f"fuzzing: {total} cases of files of others, each read or refused in a sentence")
