import errno
import json
from pathlib import Path

import pytest
import torch
from train_factory import run_line

from pipeline.config import FailedError, RequestError
from pipeline.train import checkpoint
from pipeline.train.checkpoint import RunFolder, RunRecord, load_state, load_weights


def record(step: int, val_loss: float | None = None) -> RunRecord:
    return RunRecord(task="line", recipe="line", config={"seed": 0}, step=step, val_loss=val_loss)


def saved(path: Path, *steps: int) -> RunFolder:
    folder = RunFolder(path)
    folder.start(record(0), {})
    for step in steps:
        folder.save(record(step), {"w": torch.full((3,), float(step))}, {"step": step}, best=False)
    return folder


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("at", ["model.safetensors", "train_state.pt", "run.json", "checkpoints.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, number: int
) -> None:
    folder = saved(tmp_path, 1)
    before = files(tmp_path)
    write = checkpoint.write_file

    def fail(path: Path, data: bytes) -> None:
        if path.name.startswith(at):
            path.write_bytes(data[: len(data) // 2])
            raise OSError(number, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_file", fail)
    sentence = (
        r"No room to write .*free some space, then go on with --resume" if number == errno.ENOSPC else "Could not"
    )
    with pytest.raises(FailedError, match=sentence):
        folder.save(record(2), {"w": torch.zeros(3)}, {"step": 2}, best=True)
    left = files(tmp_path)
    assert {name: left[name] for name in before} == before
    assert load_state(folder.folder("last")) == {"step": 1}
    monkeypatch.undo()
    folder.save(record(2), {"w": torch.zeros(3)}, {"step": 2}, best=True)
    assert load_state(folder.folder("last")) == load_state(folder.folder("best")) == {"step": 2}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_a_full_disk_while_training_is_a_sentence_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_file

    def fail(path: Path, data: bytes) -> None:
        if "00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_file", fail)
    with pytest.raises(FailedError, match="No room to write"):
        run_line(tmp_path)
    monkeypatch.undo()
    assert run_line(tmp_path, "resume").steps == 4
    assert RunFolder(tmp_path).folder("last").name == "00000004"


def test_a_checkpoint_of_the_same_step_replaces_nothing_until_it_is_whole(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3, 3)
    assert (folder.folder("best").name, folder.folder("last").name) == ("00000003", "00000003-2")
    assert load_state(folder.folder("last")) == {"step": 3}


def test_weights_fit_name_for_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, 1)
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(3))
    load_weights(model, folder.folder("last"))
    assert model.w.tolist() == [1.0, 1.0, 1.0]
    model.more = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(FailedError, match=r"model\.safetensors cannot be used"):
        load_weights(model, folder.folder("last"))


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.target, "gotcha"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", 1)
    torch.save({"step": Evil(tmp_path / "trace")}, folder.folder("last") / "train_state.pt")
    with pytest.raises(FailedError, match=r"train_state\.pt cannot be read"):
        load_state(folder.folder("last"))
    assert not (tmp_path / "trace").exists()


def test_what_is_no_run_or_another_version_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is nothing at .*expected a run"):
        RunFolder(tmp_path / "none").record()
    with pytest.raises(RequestError, match=r"There is no run\.json at"):
        RunFolder(tmp_path).record()
    folder = saved(tmp_path / "run")
    with pytest.raises(RequestError, match="has no checkpoint yet"):
        folder.folder("best")
    values = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**values, "run_version": 7}))
    with pytest.raises(RequestError, match="of run version 7, this program reads version 1"):
        folder.record()
    (tmp_path / "run" / "run.json").write_text('{"run_version": 1, "task": 3}')
    with pytest.raises(FailedError, match="does not say what a run is"):
        folder.record()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(FailedError, match="cannot be read"):
        folder.record()
