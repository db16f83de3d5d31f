"""Imports go one way: data_specs <- stages <- pipeline; and what `cla --help` loads stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "data_specs": {"data_specs"},
    "stages": {"data_specs", "stages"},
    "pipeline": {"data_specs", "stages", "pipeline"},
}
ROOMS_THAT_MUST_NOT_MEET = (("pipeline/extract", "pipeline.train"), ("pipeline/train", "pipeline.extract"))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[0] for name in _imports(path)} & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize(("folder", "forbidden"), ROOMS_THAT_MUST_NOT_MEET)
def test_the_two_halves_meet_only_in_the_store(folder: str, forbidden: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not any(name.startswith(forbidden) for name in _imports(path)), path


def test_stages_open_no_files() -> None:
    for path in (ROOT / "stages").rglob("*.py"):
        found = _imports(path) & {
            "pathlib",
            "os",
            "io",
            "zarr",
            "av",
            "PIL",
            "huggingface_hub",
            "safetensors",
        }
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, pipeline.cli; sys.exit(any(m in sys.modules for m in ('torch', 'mujoco', 'av', 'zarr')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
