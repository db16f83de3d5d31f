"""The fault suite counts its cases: a suite that has shrunk is no longer the suite."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_harness import Bench, Zygote, bench, small_videos

LEAST = 100
"""Cases of extraction under faults that must have run and passed, when all of the suite is asked for."""

EXTRACTION = "test_extraction_under_"


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def fault_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def zarr_bench(zygote: Zygote, fault_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(zygote, tmp_path_factory.mktemp("zarr"), "zarr", fault_videos) as made:
        yield made


@pytest.fixture(scope="session")
def tar_bench(zygote: Zygote, fault_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(zygote, tmp_path_factory.mktemp("tar"), "webdataset", fault_videos) as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Cases by kind. Skipped ones are named."""
    passed = Counter(_kind(report.nodeid) for report in terminalreporter.stats.get("passed", []))
    if not passed:
        return
    cases = sum(count for kind, count in passed.items() if kind.startswith(EXTRACTION))
    terminalreporter.write_line(f"fault suite: {cases} cases of extraction under faults passed (at least {LEAST})")
    for kind, count in sorted(passed.items()):
        terminalreporter.write_line(f"  {count:4d} {kind}")
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"  skipped {report.nodeid.rpartition('::')[2]}: {report.longrepr[2]}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fewer cases than there should be fail the suite; a part of it, asked for by name, may be smaller."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    whole = [Path(name).name for name in session.config.args] == ["faults"] and not session.config.option.keyword
    if exitstatus == 0 and whole and reporter is not None and not hasattr(session.config, "workerinput"):
        passed = [_kind(report.nodeid) for report in reporter.stats.get("passed", [])]
        if sum(kind.startswith(EXTRACTION) for kind in passed) < LEAST:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _kind(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].partition("[")[0]
