import json
import math
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from train_factory import LineTask, StopAt, line_recipe, run_line

from pipeline.config import FailedError, RequestError
from pipeline.train.checkpoint import RunFolder
from pipeline.train.metrics import read_metrics
from pipeline.train.progress import SilentReporter

TIMES = ("data_s", "step_s", "samples_per_s")


def lines(run: Path) -> list[dict[str, object]]:
    """All lines of the log without what depends on the clock."""
    found = read_metrics(run, "train") + read_metrics(run, "val")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    folder = RunFolder(run).folder(which)  # type: ignore[arg-type]
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("extra", [{}, {"ema": 0.5, "accumulate": 2}, {"log_every": 3}], ids=str)
def test_two_steps_and_two_more_are_the_same_as_four(tmp_path: Path, extra: dict[str, object]) -> None:
    run_line(tmp_path / "whole", warmup=8, **extra)
    first = run_line(tmp_path / "parts", warmup=8, **{**extra, "steps": 2})
    assert first.steps == 2
    rest = run_line(tmp_path / "parts", "resume", warmup=8, **extra)
    assert (rest.steps, rest.samples) == (4, 16 * (2 if "accumulate" in extra else 1))
    if "log_every" not in extra:  # the last step of a part ends its window
        assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert all(torch.equal(tensor, weights(tmp_path / "parts")[n]) for n, tensor in weights(tmp_path / "whole").items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("log_every", [1, 2])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, number: signal.Signals, log_every: int
) -> None:
    options = {"steps": 8, "validate_every": 4, "log_every": log_every}
    run_line(tmp_path / "whole", **options)
    report = StopAt(2, number)
    with pytest.raises(KeyboardInterrupt):
        run_line(tmp_path / "parts", report=report, **options)
    assert "stopped after step 3" in report.said and "--resume" in report.said
    assert RunFolder(tmp_path / "parts").record().step == 0
    run_line(tmp_path / "parts", "resume", **options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_handler_is_there_only_while_training(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_line(tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    task = lambda **more: LineTask(line_recipe(steps=3, **more))  # noqa: E731
    for name, sizes in {"one": {"batch": 8}, "two": {"batch": 4, "accumulate": 2}}.items():
        chosen = task(**sizes)
        chosen.model_of = lambda recipe: torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))  # type: ignore[method-assign,assignment]
        run_line(tmp_path / name, task=chosen)
    one, two = (read_metrics(tmp_path / name, "train") for name in ("one", "two"))
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], abs=1e-6)
    assert [line["grad_norm"] for line in one] == pytest.approx([line["grad_norm"] for line in two], abs=1e-6)


def test_the_lines_of_the_log_say_what_was_asked(tmp_path: Path) -> None:
    summary = run_line(tmp_path, steps=6, log_every=2, validate_every=3)
    train, val = read_metrics(tmp_path, "train"), read_metrics(tmp_path, "val")
    assert [line["step"] for line in train] == [2, 4, 6] and [line["step"] for line in val] == [3, 6]
    assert {"loss", "worst", "grad_norm", "lr", "samples_per_s", "data_s", "step_s", "after"} <= set(train[0])
    assert train[0]["lr"] == 0.01 and train[-1]["lr"] < 0.01
    assert summary.best_val_loss == min(line["loss"] for line in val)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert json.loads(json.dumps(summary.as_json()))["steps"] == 6
    assert any("best validation loss" in line for line in summary.lines())


def test_best_and_last_checkpoints_are_kept_and_no_others(tmp_path: Path) -> None:
    class Worse(LineTask):
        """Its validation is best after the first two steps."""

        def validation_batches(self, rank: int, world: int):  # type: ignore[no-untyped-def]
            for batch in super().validation_batches(rank, world):
                yield type(batch)(x=batch.x, y=batch.y + 10 * self.after, place=batch.place)

    summary = run_line(tmp_path, task=Worse(line_recipe(steps=8)))
    folder = RunFolder(tmp_path)
    assert folder.folder("best").name == "00000002" and folder.folder("last").name == "00000008"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000008"]
    assert (summary.best_step, summary.steps) == (2, 8)
    record = json.loads((folder.folder("best") / "run.json").read_text())
    assert (record["step"], record["val_loss"]) == (2, summary.best_val_loss)


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path: Path) -> None:
    class Blind(LineTask):
        def validation_batches(self, rank: int, world: int):  # type: ignore[no-untyped-def]
            return iter(())

    summary = run_line(tmp_path, task=Blind(line_recipe()))
    assert summary.best_val_loss is None
    assert RunFolder(tmp_path).folder("best") == RunFolder(tmp_path).folder("last")
    assert RunFolder(tmp_path).folder("last").name == "00000004"


def test_the_average_of_the_weights_is_what_is_saved(tmp_path: Path) -> None:
    run_line(tmp_path / "plain", steps=2)
    run_line(tmp_path / "averaged", steps=2, ema=0.999)
    plain, averaged = weights(tmp_path / "plain"), weights(tmp_path / "averaged")
    assert not torch.equal(plain["layers.0.weight"], averaged["layers.0.weight"])
    state = torch.load(RunFolder(tmp_path / "averaged").folder("last") / "train_state.pt", weights_only=True)
    assert torch.equal(plain["layers.0.weight"], state["average"]["weights"]["layers.0.weight"])


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"The loss \(nan\) of step 3 is not finite.*point-11, point-8, point-9"):
        run_line(tmp_path, task=LineTask(line_recipe(), broken=9))
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())
    assert RunFolder(tmp_path).folder("last").name == "00000002"


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path) -> None:
    class Cliff(LineTask):
        def loss(self, model, batch, step):  # type: ignore[no-untyped-def]
            return (model(batch.x) * 0).abs().sqrt().mean(), {}

    with pytest.raises(FailedError, match=r"The gradient of step 1 is not finite"):
        run_line(tmp_path, task=Cliff(line_recipe()))


def test_an_existing_run_is_not_touched_unasked(tmp_path: Path) -> None:
    run_line(tmp_path)
    before = weights(tmp_path)
    with pytest.raises(RequestError, match=r"go on with it by --resume, replace it by --overwrite"):
        run_line(tmp_path)
    assert all(torch.equal(tensor, weights(tmp_path)[name]) for name, tensor in before.items())
    run_line(tmp_path, "overwrite", steps=2)
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == [1, 2]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for mode in ("new", "overwrite"):
        with pytest.raises(RequestError, match="is not empty and is no run"):
            run_line(tmp_path, mode)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_asks_for_the_same_recipe_and_data(tmp_path: Path) -> None:
    run_line(tmp_path, steps=2)
    with pytest.raises(RequestError, match=r"these keys differ: train\.batch, train\.lr\."):
        run_line(tmp_path, "resume", lr=0.02, batch=2)
    with pytest.raises(RequestError, match=r"was trained on other data \(store memory, digest d0; this one has d1"):
        run_line(tmp_path, "resume", task=LineTask(line_recipe(), digest="d1"))
    other = LineTask(line_recipe())
    other.name = "curve"  # type: ignore[misc]
    with pytest.raises(RequestError, match=r"is of task line, not curve"):
        run_line(tmp_path, "resume", task=other)
    with pytest.raises(RequestError, match=r"There is no run\.json|There is nothing"):
        run_line(tmp_path / "nowhere", "resume")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    class Killed(LineTask):
        def after_step(self, model: object, number: int) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        run_line(tmp_path / "killed", task=Killed(line_recipe()))
    assert RunFolder(tmp_path / "killed").pointers() is None
    run_line(tmp_path / "killed", "resume")
    run_line(tmp_path / "whole")
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_resumed_is_finished(tmp_path: Path) -> None:
    run_line(tmp_path)
    before = lines(tmp_path)
    assert run_line(tmp_path, "resume").steps == 4
    assert lines(tmp_path) == before


def test_bfloat16_trains(tmp_path: Path) -> None:
    summary = run_line(tmp_path, precision="bfloat16")
    assert math.isfinite(summary.train["loss"])
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    from pipeline.train.launch import TrainRequest, train

    with pytest.raises(RequestError, match="--device cuda:99"):
        train(LineTask(line_recipe()), TrainRequest(out=tmp_path / "x", device="cuda:99"), SilentReporter())
    assert not (tmp_path / "x").exists()
