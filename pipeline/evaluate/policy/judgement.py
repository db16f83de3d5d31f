"""What a closed loop has shown: success by task, with how sure it is, and everything needed to see it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluate.policy.scores import wilson95
from pipeline.evaluate.policy.trials import TrialResult


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """`successes` of `episodes` episodes of a task, and their mean length in control steps."""

    task: str
    successes: int
    episodes: int
    mean_length: float
    mean_success_length: float | None

    @property
    def rate(self) -> float:
        """The success rate."""
        return self.successes / self.episodes

    @property
    def ci95(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson95(self.successes, self.episodes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """A policy in closed loop.

    Attributes:
        policy: what acted: `name`, and of a run its recipe, step and the SHA-256 of its weights.
        settings: environment, tasks, episodes, seed, execution, ..., as they were used.
        results: in the order of the episodes. seconds: wall time of the loop; `seconds_of` its parts, summed over the
            processes.
        warnings: what a reader of the figures must know.
    """

    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: tuple[TrialResult, ...]
    seconds: float
    seconds_of: Mapping[str, float]
    warnings: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order they were asked for."""
        return tuple(dict.fromkeys(result.trial.task for result in self.results))

    def of(self, task: str) -> tuple[TrialResult, ...]:
        """The episodes of a task."""
        return tuple(result for result in self.results if result.trial.task == task)

    def score(self, task: str) -> TaskScore:
        """How a task went."""
        results = self.of(task)
        good = [result.steps for result in results if result.success]
        return TaskScore(
            task=task,
            successes=len(good),
            episodes=len(results),
            mean_length=sum(result.steps for result in results) / len(results),
            mean_success_length=sum(good) / len(good) if good else None,
        )

    @property
    def scores(self) -> tuple[TaskScore, ...]:
        """The score of every task."""
        return tuple(self.score(task) for task in self.tasks)

    @property
    def mean_success(self) -> float:
        """The mean success rate over tasks."""
        return sum(score.rate for score in self.scores) / len(self.scores)

    @property
    def steps_per_s(self) -> float:
        """Control steps of all episodes a second of wall time."""
        return sum(result.steps for result in self.results) / max(self.seconds, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Everything but the films, as plain values."""
        return {
            "success": {score.task: score.rate for score in self.scores},
            "ci95": {score.task: list(score.ci95) for score in self.scores},
            "success_mean": self.mean_success,
            "episodes": self.settings["episodes"],
            "mean_length": {score.task: score.mean_length for score in self.scores},
            "mean_success_length": {score.task: score.mean_success_length for score in self.scores},
            "steps_per_s": self.steps_per_s,
            "seconds": self.seconds,
            "seconds_of": dict(self.seconds_of),
            "policy": dict(self.policy),
            "settings": dict(self.settings),
            "warnings": list(self.warnings),
            "results": [
                {
                    "task": result.trial.task,
                    "index": result.trial.index,
                    "instruction": result.instruction,
                    "success": result.success,
                    "steps": result.steps,
                    **({"problem": result.problem} if result.problem else {}),
                }
                for result in self.results
            ],
        }
