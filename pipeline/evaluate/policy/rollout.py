"""The closed loop: rounds of acting and looking in all slots, the policy asked about all of them at once.

Shape legend: n slots that look, H steps of a chunk, A dimensions of an action.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_specs.arrays import Array
from pipeline.config import FailedError
from pipeline.evaluate.policy.execution import Execution, Executor
from pipeline.evaluate.policy.hands import Hands
from pipeline.evaluate.policy.trials import Act, Command, Follow, Look, Report, Start, Trial, TrialResult

Progress = Callable[[int, int], object]


class Policy(Protocol):
    """Gives chunks of actions for what it is shown."""

    @property
    def horizon(self) -> int:
        """Steps of a chunk, H."""

    def act(self, looks: Sequence[Look]) -> Array:
        """Chunks f4 [n,H,A] in the environment's units."""


@dataclass(frozen=True, kw_only=True)
class RollOut:
    """The results in the order of the trials; the wall time, and that of it in which the policy thought."""

    results: tuple[TrialResult, ...]
    seconds: float
    policy_seconds: float

    @property
    def steps(self) -> int:
        """Control steps of all episodes."""
        return sum(result.steps for result in self.results)


@dataclass(kw_only=True)
class _Running:
    """A slot's trial under way, and what it does next."""

    trial: Trial
    executor: Executor | None
    command: Command


def roll_out(
    trials: Sequence[Trial],
    hands: Hands,
    policy: Policy | None,
    *,
    execution: Execution | None,
    slots: int,
    progress: Progress = lambda _done, _total: None,
) -> RollOut:
    """Run all trials, `slots` at a time.

    The schedule follows from the trials and from what happens in them alone: slots act in rounds, and a free slot takes
    the next trial in the next round.

    Args:
        trials: the episodes.
        hands: carries commands out; closed by the caller.
        policy: asked at every look; None lets the environment's expert act.
        execution: how chunks are executed; of a policy.
        slots: episodes at once.
        progress: called with how many episodes are over, and of how many.

    Raises:
        FailedError: the policy gives something else than finite actions, or a process dies.
    """
    queue, running = deque(trials), dict[int, _Running]()
    results: list[TrialResult] = []
    begin, thinking = time.perf_counter(), 0.0
    progress(0, len(trials))
    while queue or running:
        for slot in range(slots):
            if slot not in running and queue:
                trial = queue.popleft()
                executor = None if execution is None else execution.start()
                running[slot] = _Running(trial=trial, executor=executor, command=Start(slot, trial))
        reports = hands.round([running[slot].command for slot in sorted(running)])
        results += [_result(running.pop(report.slot).trial, report) for report in reports if report.done]
        progress(len(results), len(trials))
        alive = [report for report in reports if not report.done]
        before = time.perf_counter()
        _command(alive, running, policy)
        thinking += time.perf_counter() - before
    return RollOut(
        results=tuple(sorted(results, key=lambda result: result.trial.number)),
        seconds=time.perf_counter() - begin,
        policy_seconds=thinking,
    )


def _command(reports: Sequence[Report], running: dict[int, _Running], policy: Policy | None) -> None:
    """Give every slot that is still under way its next command."""
    if policy is None:
        for report in reports:
            running[report.slot].command = Follow(report.slot)
        return
    if not reports:
        return
    looks = [Look(trial=running[report.slot].trial, step=report.steps, seen=report.seen) for report in reports]
    chunks = policy.act(looks)
    for report, look, chunk in zip(reports, looks, chunks, strict=True):
        if not np.isfinite(chunk).all():
            raise FailedError(
                f"The policy gave actions that are not finite at step {look.step} of episode {look.trial.index} of "
                f"{look.trial.task}: its weights or its statistics are broken."
            )
        executor = running[report.slot].executor
        assert executor is not None, "a policy needs an execution"
        running[report.slot].command = Act(report.slot, executor.actions(chunk))


def _result(trial: Trial, report: Report) -> TrialResult:
    return TrialResult(
        trial=trial,
        instruction=report.instruction,
        success=report.success,
        steps=report.steps,
        problem=report.problem,
        film=report.film,
    )
