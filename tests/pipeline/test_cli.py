import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from video_factory import disc_video

from pipeline.cli import app
from pipeline.recipes import EXTRACT

ROOT = Path(__file__).parents[2]
RANDOM = ["vggt.weights=random:0", "concerto.weights=random:0"]
SMALL = ["frames.max=2", "points.count=512", "points.min_points=100", "store.shard_mb=0.2", *RANDOM]
COMMANDS = [
    ["extract"],
    ["inspect-shards"],
    ["doctor"],
    ["demo"],
    ["sim", "record"],
    ["train", "tiny-frozen"],
    ["train", "laq"],
    ["train", "vla"],
    ["bench", "extract"],
    ["bench", "store"],
    ["bench", "points"],
    ["bench", "size"],
    ["label"],
    ["merge"],
    ["eval", "probe"],
    ["eval", "policy"],
    ["bench", "s2d"],
    ["bench", "train"],
    ["bench", "policy"],
    ["plan"],
]


def cla(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(3):
        disc_video(root / f"{i}.mp4", seed=i)
    return root


@pytest.fixture(scope="module")
def store(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    result = cla("extract", "--dataset", "video", "--root", videos, "--out", out, "--recipe", "tiny", "--json", *SMALL)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)  # one JSON object and nothing else
    assert summary["clips"] == 3
    assert summary["random_weights"] == ["vggt (random:0)", "concerto (random:0)"]
    assert "RANDOM weights" in result.stderr
    return out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_screen_and_shows_an_example(command: list[str]) -> None:
    result = cla(*command, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert any(line.strip().startswith("Example:") for line in lines)


def test_the_list_of_commands_is_that_of_the_help(store: Path) -> None:
    listed = cla("--help").stdout
    assert all(command[0] in listed for command in COMMANDS)


def test_inspect_says_what_is_there(store: Path) -> None:
    text = cla("inspect-shards", store, "--verify")
    assert text.exit_code == 0
    assert "3 clips, 6 frames" in text.stdout
    assert "RANDOM weights: vggt, concerto" in text.stdout
    assert "yes, all of it" in text.stdout
    values = json.loads(cla("inspect-shards", store, "--verify", "--json").stdout)
    assert (values["clips"], values["frames"], values["verified"], values["rejected"]) == (3, 6, True, 0)
    assert set(values["tokens_per_frame"]) == {"min", "median", "max"}
    assert values["bytes_per_frame"] > 0
    assert values["compression_vs_dense"] > 1
    assert len(values["digest"]) == 64


def test_damage_is_named_and_exits_1(store: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    shard = sorted((damaged / "shards").glob("*.zarr.zip"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    result = cla("inspect-shards", damaged, "--verify")
    assert result.exit_code == 1
    assert "DAMAGED    shard 000000" in result.stdout
    damaged = [line for line in result.stdout.splitlines() if line.startswith("DAMAGED")]
    assert len(damaged) == len(set(damaged))
    assert "`cla repair " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["extract", "--dataset", "ssv3", "--out", "x", "--recipe", "tiny"], "Did you mean 'ssv2'"),
        (["extract", "--dataset", "ssv2", "--out", "x", "--recipe", "tiny"], "needs --root"),
        (["extract", "--dataset", "ssv2", "--root", "/nowhere", "--out", "x", "--recipe", "tiny"], "does not exist"),
        (["extract", "--dataset", "video", "--recipe", "tiny"], "Missing --out"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--recipe", "tinny"], "Did you mean 'tiny'"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--recipe", "tiny", "pionts.count=3"], "points.count"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--recipe", "tiny", "dataset.clip=3"], "clips"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--format", "hdf5"], "zarr or webdataset"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--resume", "--overwrite"], "give one of them"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--retry-rejected"], "together with --resume"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--device", "cuda:99", "--recipe", "tiny"], "CUDA"),
        (["extract", "--dataset", "tabletop", "--out", "x", "--device", "tpu", "--recipe", "tiny"], "expected auto"),
        (["inspect-shards", "/nowhere"], "There is nothing at /nowhere"),
        (["inspect-shards", "."], "no manifest.json"),
        (["sim", "record", "--format", "hdf5", "--out", "x"], "choose from ssv2, rgbd"),
        (["doctor", "--folder", "/nowhere"], "not a folder"),
    ],
)
def test_a_wrong_request_is_a_sentence_and_exits_2(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cla(*arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()


def test_a_misspelt_option_or_command_exits_2() -> None:
    for arguments in (["extract", "--datset", "x"], ["extrat"]):
        result = cla(*arguments)
        assert result.exit_code == 2
        assert "dataset" in result.stderr or "extract" in result.stderr


def test_too_many_bad_clips_exit_3(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    disc_video(root / "good.mp4")
    (root / "bad.mp4").write_bytes(b"no video")
    result = cla("extract", "--dataset", "video", "--root", root, "--out", tmp_path / "s", "--recipe", "tiny", *SMALL)
    assert result.exit_code == 3, result.output
    assert "bad: " in result.stdout
    assert "max_bad_fraction" in result.stdout


@pytest.mark.parametrize("recipe", EXTRACT)
def test_print_config_is_the_recipe_as_json(recipe: str) -> None:
    result = cla("extract", "--dataset", "ssv2", "--recipe", recipe, "--print-config", "points.count=4096")
    values = json.loads(result.stdout)
    assert values["name"] == recipe
    assert values["points"]["count"] == 4096


def test_doctor_is_fine_here_and_every_other_line_has_a_remedy() -> None:
    result = cla("doctor", "--json")
    assert result.exit_code == 0
    findings = json.loads(result.stdout)["findings"]
    assert {"python", "torch", "device", "disk", "facebook/VGGT-1B", "spconv"} <= {f["what"] for f in findings}
    assert all(f["remedy"] for f in findings if f["state"] != "ok")
    assert cla("doctor").stdout.count("\n") >= len(findings)


def _start_extraction(folder: Path) -> tuple[subprocess.Popen[bytes], list[str], Path]:
    """An extraction of 12 clips in a process group of its own that has just committed its first shard."""
    root, out = folder / "videos", folder / "store"
    for i in range(12):
        disc_video(root / f"{i:02}.mp4", seed=i)
    arguments = ["extract", "--dataset", "video", "--root", str(root), "--out", str(out), "--recipe", "tiny"]
    arguments += [*SMALL, "store.shard_mb=0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a suite started in the background of a script inherits that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list((out / "shards").glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, arguments, out


def _check_resumed(arguments: list[str], out: Path) -> None:
    again = cla(*arguments, "--resume")
    assert again.exit_code == 0, again.output
    summary = json.loads(cla("inspect-shards", out, "--verify", "--json").stdout)
    assert (summary["clips"], summary["verified"]) == (12, True)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_extraction_exits_130_and_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    process, arguments, out = _start_extraction(tmp_path)
    os.killpg(process.pid, number)  # as a terminal does: to the workers, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    _check_resumed(arguments, out)


def test_the_workers_of_a_killed_extraction_end_too_and_it_can_be_resumed(tmp_path: Path) -> None:
    process, arguments, out = _start_extraction(tmp_path)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert workers
    process.kill()
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)
    _check_resumed(arguments, out)
