"""The one loop: steps, log lines, validation, checkpoints and resuming, of any task."""

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config import FailedError
from pipeline.train.checkpoint import RunFolder, RunRecord, load_state, load_weights
from pipeline.train.metrics import Meter, MetricsLog
from pipeline.train.optim import WeightAverage, learning_rate, make_optimizer, set_learning_rate
from pipeline.train.processes import Processes, random_state, restore_random_state
from pipeline.train.progress import Reporter
from pipeline.train.signals import StopSignal
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train.validation import validate
from stages.draw import Draw, mix_seed

_KEYS_SHOWN = 16


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a run ended: `train` and `val` are its last lines. `main` is true in the one process that shall print it."""

    out: str
    task: str
    recipe: str
    steps: int
    samples: int
    seconds: float
    best_step: int
    best_val_loss: float | None
    train: dict[str, float] = field(default_factory=dict)
    val: dict[str, float] = field(default_factory=dict)
    main: bool = True

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {name: value for name, value in vars(self).items() if name != "main"}

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        done = f"{self.steps} steps, {self.samples} samples, {self.seconds:.1f} s"
        yield f"{self.out}: {self.task} by {self.recipe}, {done}"
        if self.best_val_loss is not None:
            yield f"best validation loss {self.best_val_loss:.5g} at step {self.best_step}"
        if "codes_used" in self.train:
            used, perplexity = self.train["codes_used"], self.train["perplexity"]
            yield f"codes used {used:.0f}, perplexity {perplexity:.1f} over the last window of the log"
        if "error" in self.val:
            yield f"action error {self.val['error']:.4g} on held-out moments (mean absolute, in the data's units)"
        yield f"curves: tensorboard --logdir {self.out}"


class Trainer:
    """A run in this process: the model, its optimiser, and how far they are."""

    def __init__(
        self, task: Task[Any], folder: RunFolder, record: RunRecord, processes: Processes, report: Reporter
    ) -> None:
        self.task, self.folder, self.record, self.report = task, folder, record, report
        self.processes = processes
        self.section, self.seed = task.recipe.train, task.recipe.seed
        self.step = self.samples = 0
        self.saved_step = -1
        self.seconds = 0.0
        self.best_loss: float | None = None
        self.best_step = 0
        self.last_lines: dict[str, dict[str, float]] = {"train": {}, "val": {}}
        self.meter = Meter()
        torch.manual_seed(self.seed)
        self.module = task.model_of(task.recipe).to(processes.device)

    def begin(self, *, resume: bool) -> None:
        """Make the run's folder and give the model its first weights, or those of the last checkpoint.

        A run that was stopped before its first checkpoint starts anew.
        """
        state = self._load() if resume and self.folder.pointers() is not None else None
        if state is None:
            for text in self.task.notes():
                self.report.note(text)
            self.task.start(self.module, self.processes.device)
        self.average = WeightAverage(self.module, self.section.ema) if self.section.ema else None
        optimizer = make_optimizer(self.module, self.section, self.task.lr_scales(self.module))
        if self.section.compile:
            self.module.compile()
        self.model, self.optimizer = self.processes.wrap(self.module, optimizer)
        self.plan = BatchPlan(
            batch=self.section.batch,
            accumulate=self.section.accumulate,
            rank=self.processes.rank,
            world=self.processes.world,
            start=0 if state is None else int(state["samples"]),
        )
        torch.manual_seed(mix_seed(self.seed, self.processes.rank))
        if state is not None:
            self._restore(state)
        self._open_folder(new=state is None)

    def run(self, stop: StopSignal) -> TrainSummary:
        """Steps until the last one, or until asked to stop."""
        started = time.perf_counter() - self.seconds
        batches = self.task.batches(self.plan)
        try:
            while self.step < self.section.steps:
                stopping = self._one_step(batches, stop)
                self.seconds = time.perf_counter() - started
                if self.step % self.section.log_every == 0 or self.step == self.section.steps:
                    self._log()
                if self.step % self.section.validate_every == 0 or self.step == self.section.steps:
                    self._validate_and_save()
                if stopping:
                    self._interrupt()
            return self.summary()
        finally:
            if isinstance(batches, Generator):
                batches.close()  # or loader processes, which ignore signals, would keep an interrupted run from ending
            if self.log is not None:
                self.log.close()

    def summary(self) -> TrainSummary:
        """How far the run is."""
        return TrainSummary(
            out=str(self.folder.path),
            task=self.task.name,
            recipe=self.record.recipe,
            steps=self.step,
            samples=self.samples,
            seconds=round(self.seconds, 3),
            best_step=self.best_step,
            best_val_loss=self.best_loss,
            main=self.processes.main,
            train=self.last_lines["train"],
            val=self.last_lines["val"],
        )

    def _one_step(self, batches: Iterator[Any], stop: StopSignal) -> bool:
        """An optimiser step; whether any process was asked to stop."""
        begun = time.perf_counter()
        set_learning_rate(self.optimizer, learning_rate(self.section, self.step))
        losses, taken, waited = self._gradients(batches)
        norm = self.processes.clip(self.model, self.section.clip)
        asked = self._check(losses, norm, taken, stop)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.samples += self.plan.step_samples
        if self.average is not None:
            self.average.update()
        self.task.after_step(self.module, self.step)
        spent = {"data_s": waited, "step_s": time.perf_counter() - begun}
        self.meter.add({"grad_norm": norm, **{n: torch.tensor(v, dtype=torch.float64) for n, v in spent.items()}})
        return asked

    def _gradients(self, batches: Iterator[Any]) -> tuple[list[Tensor], list[Any], float]:
        """Add up the gradients of the step's micro-batches; their losses, the batches, and seconds of waiting."""
        losses, taken, waited = [], [], 0.0
        for micro in range(self.plan.accumulate):
            before = time.perf_counter()
            batch = next(batches).to(self.processes.device, non_blocking=True)
            waited += time.perf_counter() - before
            with self.processes.holding_back(self.model, micro + 1 < self.plan.accumulate):
                loss, scalars = self.task.loss(self.model, batch, self._step_of(micro))
                self.processes.backward(loss)
            self.meter.add({**scalars, "loss": loss})
            losses.append(loss.detach())
            taken.append(batch)
        return losses, taken, waited

    def _check(self, losses: list[Tensor], norm: Tensor, batches: list[Any], stop: StopSignal) -> bool:
        """Stop before a step that is not finite, in all processes alike; whether any of them was asked to stop.

        The one place where every step waits for the device: a step that poisons the weights must never be made.
        """
        loss = torch.stack(losses).mean().float()
        asked = loss.new_tensor(float(stop.asked))
        mean_loss, any_asked, length = self.processes.mean(torch.stack([loss, asked, norm.float()])).tolist()
        if not (math.isfinite(mean_loss) and math.isfinite(length)):
            self._not_finite(mean_loss, losses, batches)
        return bool(any_asked > 0)

    def _step_of(self, micro: int) -> Step:
        draw = Draw(
            self.seed,
            self.step,
            start=self.plan.offset(micro),
            count=self.plan.batch,
            total=self.plan.step_samples,
            device=self.processes.device,
        )
        return Step(number=self.step, draw=draw)

    def _not_finite(self, mean_loss: float, losses: list[Tensor], batches: list[Any]) -> None:
        bad = [batch for loss, batch in zip(losses, batches, strict=True) if not torch.isfinite(loss)]
        mine = (
            [key for batch in bad or batches for key in self.task.keys(batch)] if bad or mean_loss == mean_loss else []
        )
        keys = sorted({key for keys in self.processes.gather(mine) for key in keys})
        what = f"loss ({mean_loss})" if mean_loss - mean_loss != 0 else "gradient"
        shown = ", ".join(keys[:_KEYS_SHOWN]) + (
            f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        )
        raise FailedError(
            f"The {what} of step {self.step + 1} is not finite; its batch: {shown}. Look at these clips by "
            "`cla inspect-shards --verify`, or start anew with a lower train.lr. Earlier checkpoints are whole."
        )

    def _log(self) -> None:
        names, means = self.meter.read()
        values = dict(zip(names, self.processes.mean(means).tolist(), strict=True))
        values["lr"] = learning_rate(self.section, self.step - 1)
        values["samples_per_s"] = self.plan.step_samples / values["step_s"]
        values |= self.task.log_metrics(self.module)
        self._write_line("train", values)
        for text in self.task.warnings(values, self.step):
            self.report.warn(text)

    def _write_line(self, split: str, values: dict[str, float]) -> None:
        self.last_lines[split] = values
        if self.log is not None:
            self.log.write(self.step, split, values)
        self.report.update(self.step, self.section.steps)
        self.report.metrics(self.step, split, values)

    def _validate_and_save(self) -> None:
        if self.average is not None:
            self.average.swap()
        values = validate(self.task, self.module, self.processes, self.seed)
        if self.average is not None:
            self.average.swap()
        loss = values.get("loss")
        better = loss is not None and (self.best_loss is None or loss < self.best_loss)
        if better:
            self.best_loss, self.best_step = loss, self.step
        if values:
            self._write_line("val", values)
        self._save(loss, best=better or self.best_loss is None)

    def _interrupt(self) -> None:
        if self.saved_step != self.step:
            self._save(None, best=False)
        self.report.warn(f"stopped after step {self.step}; {self.folder.path} can go on by --resume")
        raise KeyboardInterrupt

    def _save(self, val_loss: float | None, *, best: bool) -> None:
        """A checkpoint: `last`, and `best` when it is; a run without validation calls its last checkpoint its best."""
        mine = {"random": random_state(self.processes.device), "meter": self.meter.state_dict()}
        ranks = self.processes.gather(mine)
        if self.processes.main:
            record = self.record.model_copy(update={"step": self.step, "val_loss": val_loss})
            weights = self.module.state_dict() if self.average is None else self.average.weights()
            self.folder.save(record, weights, self._state(ranks), best=best)
        self.saved_step = self.step
        self.processes.wait()

    def _state(self, ranks: list[Any]) -> dict[str, Any]:
        average = None
        if self.average is not None:
            average = {"updates": self.average.updates, "weights": self.module.state_dict()}
        return {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "best": {"loss": self.best_loss, "step": self.best_step},
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "task": self.task.state_dict(),
            "ranks": ranks,
        }

    def _load(self) -> dict[str, Any]:
        folder = self.folder.folder("last")
        load_weights(self.module, folder)
        return load_state(folder)

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint was made; its weights are in the model already."""
        self.step, self.samples, self.seconds = int(state["step"]), int(state["samples"]), float(state["seconds"])
        self.best_loss, self.best_step = state["best"]["loss"], state["best"]["step"]
        self.saved_step = self.step
        if self.average is not None:  # the file has the averages: keep them, and train on with the weights themselves
            self.average.load(self.module.state_dict(), int(state["average"]["updates"]))
            self.module.load_state_dict(state["average"]["weights"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.load_state_dict(state["task"])
        if self.processes.rank < len(state["ranks"]):
            mine = state["ranks"][self.processes.rank]
            self.meter.load_state_dict(mine["meter"])
            restore_random_state(mine["random"], self.processes.device)

    def _open_folder(self, *, new: bool) -> None:
        self.log: MetricsLog | None = None
        self.processes.wait()  # all have seen what was there before the main process changes it
        if self.processes.main:
            if new:
                self.folder.start(self.record, self.task.describe().get("clips", {}))
            self.log = MetricsLog(
                self.folder.path, step=self.step, wandb_project=self.section.wandb, config=self.record.config
            )
        self.processes.wait()
