"""What a run folder holds, and how it stays whole: written to temporary names, synced, renamed.

    RUN/run.json              what the run is (see `RunRecord`)
    RUN/checkpoints.json      which checkpoints are `last` and `best`: the commit of a checkpoint
    RUN/checkpoints/STEP/     model.safetensors  train_state.pt  run.json
    RUN/metrics.jsonl         RUN/tensorboard/      RUN/split.json

A checkpoint's folder has its final name only when all of its files are on the disk, and counts only when
checkpoints.json names it; those that it no longer names are removed after that. Weights are safetensors and the
training state is read with `weights_only=True`: nothing is ever unpickled.
"""

import errno
import io
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.config import FailedError, RequestError
from pipeline.foreign import UNREADABLE, BadJson, read_json, shortened, unreadable

RUN_VERSION = 1
RUN, POINTERS, SPLIT, METRICS = "run.json", "checkpoints.json", "split.json", "metrics.jsonl"
CHECKPOINTS, BOARD = "checkpoints", "tensorboard"
MODEL, STATE = "model.safetensors", "train_state.pt"
TEMPORARY = ".tmp-"

_NAME = re.compile(r"\d{8,}(-\d+)?")

Which = Literal["best", "last"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRecord(_Record):
    """What a run learns, from what, with what (`run.json`).

    `config` is the whole recipe as it was used; `store` the URL, digest, sizes and frozen models of the training
    store; `split` the rule and the sizes of the split; `statistics` normalisation that inference must undo;
    `val_loss` of the checkpoint beside the record, where it was measured.
    """

    run_version: int = RUN_VERSION
    task: str
    recipe: str
    config: dict[str, Any]
    store: dict[str, Any] = {}
    split: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    step: int = 0
    val_loss: float | None = None


class Pointers(_Record):
    """Names of the checkpoints that count (`checkpoints.json`), and the validation loss of the best."""

    last: str
    best: str
    best_loss: float | None = None


RecordT = TypeVar("RecordT", bound=_Record)


class RunFolder:
    """The files of a run. Only the main process of a run writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether there is a run."""
        return (self.path / RUN).is_file()

    def refuse_foreign(self) -> None:
        """RequestError when the folder holds something that is no run."""
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"{self.path} is a file: name another --out, a new folder.")
        if self.path.is_dir() and not self.exists():
            held = sorted(p.name for p in self.path.iterdir() if TEMPORARY not in p.name)
            if held:
                raise RequestError(
                    f"{self.path} is not empty and is no run (it holds {', '.join(held[:3])}): name another --out."
                )

    def record(self) -> RunRecord:
        """What the run is. RequestError when there is no run, or it is of another version."""
        return read_record(self.path / RUN)

    def pointers(self) -> Pointers | None:
        """The checkpoints that count; None when there is none yet."""
        path = self.path / POINTERS
        if not path.is_file():
            return None
        return _parse(Pointers, path)

    def start(self, record: RunRecord, split: Mapping[str, Any]) -> None:
        """Make the folder of a new run; what a run there held before is removed, `run.json` first."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (RUN, POINTERS, SPLIT, METRICS):
                (self.path / name).unlink(missing_ok=True)
            for name in (CHECKPOINTS, BOARD):
                shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / CHECKPOINTS).mkdir()
            write_json(self.path / SPLIT, dict(split))
            write_json(self.path / RUN, record.model_dump(mode="json"))

    def save(self, record: RunRecord, weights: Mapping[str, Tensor], state: Mapping[str, Any], *, best: bool) -> Path:
        """Write a checkpoint and let `last` (and `best`) point to it. FailedError leaves the earlier ones as they were.

        Args:
            record: of the run, with the checkpoint's step and validation loss.
            weights: what `model.safetensors` holds. state: what `train_state.pt` holds.
            best: whether this is the best checkpoint so far; the first one is, whatever is said.
        """
        name = _unused_name(self.path / CHECKPOINTS, record.step)
        target = self.path / CHECKPOINTS / name
        with explained(target):
            folder = target.with_name(name + TEMPORARY + uuid.uuid4().hex[:8])
            folder.mkdir(parents=True)
            try:
                write_file(folder / MODEL, safetensors.torch.save(_plain(weights)))
                write_file(folder / STATE, _torch_bytes(state))
                write_json(folder / RUN, record.model_dump(mode="json"))
                folder.rename(target)
                _sync_folder(target.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            old = self.pointers()
            kept = (name, record.val_loss) if best or old is None else (old.best, old.best_loss)
            pointers = Pointers(last=name, best=kept[0], best_loss=kept[1])
            write_json(self.path / POINTERS, pointers.model_dump(mode="json"))
            self._remove_others(pointers)
        return target

    def folder(self, which: Which) -> Path:
        """The folder of a checkpoint. RequestError when the run has none yet."""
        pointers = self.pointers()
        if pointers is None:
            raise RequestError(
                f"The run at {self.path} has no checkpoint yet: go on with it by `cla train` and --resume."
            )
        name = pointers.best if which == "best" else pointers.last
        if not _NAME.fullmatch(name):
            raise FailedError(
                f"{self.path / POINTERS} names the checkpoint {shortened(repr(name), 80)}, expected a folder of steps."
            )
        return self.path / CHECKPOINTS / name

    def _remove_others(self, pointers: Pointers) -> None:
        for folder in (self.path / CHECKPOINTS).iterdir():
            if folder.name not in (pointers.last, pointers.best):
                shutil.rmtree(folder, ignore_errors=True)


def read_record(path: Path) -> RunRecord:
    """A `run.json`. RequestError when it is not there or of another version."""
    if not path.is_file():
        what = "There is nothing" if not path.parent.exists() else f"There is no {path.name}"
        raise RequestError(f"{what} at {path.parent}: expected a run, a folder that `cla train` has written.")
    return _parse(RunRecord, path)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put a checkpoint's weights into `model`, name for name. FailedError when they do not fit or are damaged."""
    path = folder / MODEL
    try:
        weights = safetensors.torch.load(path.read_bytes())
        model.load_state_dict(weights, strict=True)
    except unreadable(SafetensorError) as error:
        raise FailedError(
            f"The weights in {path} cannot be used ({_first_lines(error)}): they are damaged, or another version of "
            "concerto-laq wrote them. Take another checkpoint of the run, or train anew."
        ) from error


def load_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's training state, on the CPU. FailedError when it is damaged."""
    path = folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except UNREADABLE as error:
        raise FailedError(
            f"The training state in {path} cannot be read ({_first_lines(error)}): go on from another checkpoint, or "
            "train anew with --overwrite."
        ) from error
    return state


def write_file(path: Path, data: bytes) -> None:
    """A whole file on the disk; OSError when it cannot be."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """A JSON file, replaced whole."""
    temporary = path.with_name(path.name + TEMPORARY + uuid.uuid4().hex[:8])
    try:
        write_file(temporary, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into a FailedError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FailedError(
                f"No room to write {path} ({error.strerror}). Earlier checkpoints are whole: free some space, then go "
                "on with --resume."
            ) from error
        raise FailedError(f"Could not write {path}: {error.strerror or error}.") from error


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}


def _torch_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _unused_name(folder: Path, step: int) -> str:
    """A name for a checkpoint of that step; never that of one that is there, so that renaming replaces nothing."""
    names = itertools.chain([f"{step:08d}"], (f"{step:08d}-{i}" for i in itertools.count(2)))
    return next(name for name in names if not (folder / name).exists())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(kind: type[RecordT], path: Path) -> RecordT:
    try:
        values = read_json(path)
    except BadJson as error:
        raise FailedError(f"{path} cannot be read: it {error}.") from error
    except OSError as error:
        raise FailedError(f"{path} cannot be read ({_first_lines(error)}).") from error
    version = values.get("run_version", RUN_VERSION) if isinstance(values, dict) else None
    if version != RUN_VERSION:
        raise RequestError(
            f"{path} is of run version {shortened(version, 30)}, this program reads version {RUN_VERSION}: install "
            "the version of concerto-laq that wrote it, or train anew with --overwrite."
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise FailedError(
            f"{path} does not say what a run is: {shortened('.'.join(map(str, first['loc'])))}: {first['msg'].lower()}."
        ) from error


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:240] if lines else type(error).__name__
