"""`cla eval policy` in closed loop: from a request to a judgement."""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import RequestError, suggest
from pipeline.evaluate.policy.environment import (
    EnvironmentOptions,
    EnvironmentSpec,
    check_options,
    environment_spec,
)
from pipeline.evaluate.policy.execution import Execution
from pipeline.evaluate.policy.hands import Hands, LocalHands, ProcessHands
from pipeline.evaluate.policy.judgement import Judgement
from pipeline.evaluate.policy.references import RandomPolicy
from pipeline.evaluate.policy.rollout import Policy, Progress, RollOut, roll_out
from pipeline.evaluate.policy.slots import EyesMaker, SlotsSetup
from pipeline.evaluate.policy.trials import TrialResult, plan_trials

POLICIES = ("run", "expert", "random")


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What the user asked for; see `cla eval policy --help`. `workers` None: a process a core."""

    environment: str = "tabletop"
    tasks: str = ""
    episodes: int = 20
    seed: int = 0
    policy: str = "run"
    run: Path | None = None
    checkpoint: str = "best"
    execute: str = "chunk"
    execute_steps: int | None = None
    camera: str = "seen"
    distractors: bool = False
    max_steps: int | None = None
    render_size: int | None = None
    films: int = 0  # episodes of each task that are filmed
    workers: int | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class _Actor:
    """Who acts: `policy` (None: the environment's expert), what it must see, and what names it."""

    policy: Policy | None
    facts: dict[str, Any]
    eyes: EyesMaker | None = None
    views: tuple[str, ...] = ()
    render_size: int | None = None
    warnings: tuple[str, ...] = ()


def judge(request: JudgeRequest, progress: Progress = lambda _done, _total: None) -> Judgement:
    """Run the episodes of a request.

    Raises:
        RequestError: what was asked for cannot be. FailedError: a process dies, or the policy's actions are not finite.
    """
    spec = environment_spec(request.environment)
    tasks = spec.check_tasks(request.tasks)
    _check(request, spec)
    actor = _actor(request, spec)
    options = EnvironmentOptions(
        views=actor.views,
        render_size=request.render_size or actor.render_size,
        max_steps=request.max_steps,
        camera=_camera(request.camera),
        distractors=request.distractors,
    )
    check_options(spec, options)
    execution = None
    if actor.policy is not None:
        execution = Execution.choose(request.execute, request.execute_steps, actor.policy.horizon)
    trials = plan_trials(tasks, request.episodes, seed=request.seed, films=request.films)
    slots = min(spec.slots, len(trials))
    setup = SlotsSetup(environment=spec.name, options=options, eyes=actor.eyes)
    workers = min(slots, request.workers if request.workers is not None else os.cpu_count() or 1)
    with closing(_hands(setup, workers)) as hands:
        rolled = roll_out(trials, hands, actor.policy, execution=execution, slots=slots, progress=progress)
        seconds_of = _seconds_of(hands, rolled)
    return Judgement(
        policy=actor.facts,
        settings=_settings(request, spec, tasks, execution, workers, slots),
        results=rolled.results,
        seconds=rolled.seconds,
        seconds_of=seconds_of,
        warnings=(*actor.warnings, *problems(rolled.results)),
    )


def _check(request: JudgeRequest, spec: EnvironmentSpec) -> None:
    if request.policy not in POLICIES:
        raise RequestError(
            f"--policy {request.policy} is unknown: expected {', '.join(POLICIES)}.{suggest(request.policy, POLICIES)}"
        )
    if (request.policy == "run") != (request.run is not None):
        raise RequestError(
            "Missing --run: a run of `cla train vla`; or give --policy expert or random for a reference."
            if request.run is None
            else f"--policy {request.policy} needs no --run: give one of them."
        )
    if request.policy == "expert" and not spec.expert:
        raise RequestError(f"Environment {spec.name} has no scripted expert: give --run, or --policy random.")


def _actor(request: JudgeRequest, spec: EnvironmentSpec) -> _Actor:
    if request.policy == "expert":
        return _Actor(policy=None, facts={"name": "scripted expert"})
    if request.policy == "random":
        return _Actor(policy=RandomPolicy(spec, request.seed), facts={"name": "random actions"})
    return _run_actor(request, spec)


def _run_actor(request: JudgeRequest, spec: EnvironmentSpec) -> _Actor:
    from pipeline.evaluate.policy.acting import RunPolicy
    from pipeline.evaluate.policy.live import LiveEyes
    from pipeline.evaluate.policy.loading import LoadedPolicy

    assert request.run is not None
    loaded = LoadedPolicy.open(request.run, checkpoint=request.checkpoint, device=request.device)
    sight = loaded.sight(spec)
    random = [f"{model.role} ({model.name})" for model in loaded.models if model.random and model.role in loaded.roles]
    return _Actor(
        policy=RunPolicy(loaded, request.seed),
        facts=loaded.facts(),
        eyes=LiveEyes.of(loaded, sight),
        views=sight.cameras,
        render_size=sight.size if spec.any_size else None,
        warnings=(f"RANDOM weights of {', '.join(random)}: what the policy sees is no trained model's.",)
        if random
        else (),
    )


def problems(results: tuple[TrialResult, ...]) -> tuple[str, ...]:
    """A sentence when there were observations that the frozen models cannot use."""
    bad = [result for result in results if result.problem]
    if not bad:
        return ()
    return (
        f"{len(bad)} of {len(results)} episodes ended, as failures, with an observation that cannot be used, for "
        f"example {bad[0].trial.task} {bad[0].trial.index} after {bad[0].steps} steps: {bad[0].problem}",
    )


def _hands(setup: SlotsSetup, workers: int) -> Hands:
    return ProcessHands(setup, workers) if workers else LocalHands(setup)


def _camera(name: str) -> Any:
    """A name that `check_options` has yet to look at."""
    return name


def _seconds_of(hands: Hands, rolled: RollOut) -> dict[str, float]:
    seconds = hands.seconds
    return {
        "simulate": seconds.simulate,
        "encode": seconds.encode,
        "film": seconds.film,
        "policy": rolled.policy_seconds,
    }


def _settings(
    request: JudgeRequest,
    spec: EnvironmentSpec,
    tasks: tuple[str, ...],
    execution: Execution | None,
    workers: int,
    slots: int,
) -> dict[str, Any]:
    return {
        "environment": spec.name,
        "tasks": list(tasks),
        "episodes": request.episodes,
        "seed": request.seed,
        "execute": None if execution is None else execution.kind,
        "execute_steps": None if execution is None else execution.steps,
        "max_steps": request.max_steps or {task: spec.cap(task) for task in tasks},
        "camera": request.camera,
        "distractors": request.distractors,
        "render_size": request.render_size,
        "slots": slots,
        "workers": workers,
    }
