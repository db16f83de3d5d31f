import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from train_factory import run_line

from pipeline.config import RequestError
from pipeline.train.metrics import Meter, MetricsLog, read_metrics
from pipeline.train.progress import BarReporter, JsonReporter, reporter


def test_a_window_is_the_mean_of_its_steps_and_survives_a_checkpoint() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    again = Meter()
    again.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    for one in (meter, again):
        one.add({"a": torch.tensor(2.0)})
        names, means = one.read()
        assert names == ["a", "b"] and means.tolist() == [1.5, 4.0]
        assert one.read()[0] == []


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, step=0, wandb_project="", config={})
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": float(step), "odd": math.inf})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')  # killed while writing
    MetricsLog(tmp_path, step=2, wandb_project="", config={}).close()
    assert [(line["step"], line["loss"], line["odd"]) for line in read_metrics(tmp_path, "train")] == [
        (1, 1.0, None),
        (2, 2.0, None),
    ]


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_line(tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    events = board.Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert [event.value for event in events] == pytest.approx([x["loss"] for x in read_metrics(tmp_path, "train")])


def test_wandb_that_is_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError, match="pip install wandb"):
        run_line(tmp_path, wandb="project")


def test_wandb_gets_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self) -> None:
            self.lines: list[tuple[int, set[str]]] = []
            self.finished = False

        def init(self, **options: object) -> "Fake":
            assert options["project"] == "project" and options["config"]
            return self

        def log(self, values: dict[str, float], step: int) -> None:
            self.lines.append((step, {name.split("/")[0] for name in values}))

        def finish(self) -> None:
            self.finished = True

    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_line(tmp_path, wandb="project")
    assert fake.finished
    assert [step for step, kinds in fake.lines if kinds == {"train"}] == [1, 2, 3, 4]
    assert [step for step, kinds in fake.lines if kinds == {"val"}] == [2, 4]


def test_without_a_terminal_progress_is_json_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    with reporter(stream) as report:
        assert isinstance(report, JsonReporter)
        run_line(tmp_path, report=report)
        report.warn("mind the gap")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["step"], line["split"]) for line in lines[:-1]] == [(1, "train"), (2, "val"), (4, "val")]
    assert lines[-1] == {"event": "warning", "text": "mind the gap"}


def test_on_a_terminal_progress_is_a_bar(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with reporter(stream) as report:
        assert isinstance(report, BarReporter)
        run_line(tmp_path, report=report)
        report.warn("mind the gap")
    shown = stream.getvalue()
    assert "step 4: validation loss" in shown and "4/4" in shown and "warning: mind the gap" in shown
