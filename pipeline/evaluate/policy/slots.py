"""Slots: environments side by side in one process, each with an episode under way."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_specs.arrays import Array
from data_specs.records import BadClip
from pipeline.evaluate.policy.environment import Environment, EnvironmentOptions, Observation, open_environment
from pipeline.evaluate.policy.films import encode_mp4
from pipeline.evaluate.policy.trials import Act, Command, Report, Start, Trial

FILM_EVERY = 2
"""Control steps from one picture of a film to the next."""


class Eyes(Protocol):
    """Makes of an observation what a policy takes: the frozen models of a run, or nothing at all."""

    def __call__(self, observation: Observation, key: str) -> Any:
        """What the policy gets of a moment; it is pickled on its way. `key` names the moment. BadClip for one that
        extraction would reject.
        """


class EyesMaker(Protocol):
    """Describes eyes, so that a process can make its own. Hashable, and pickled on its way."""

    def __call__(self) -> Eyes:
        """Load what is needed."""


@dataclass(frozen=True, kw_only=True)
class SlotsSetup:
    """What every process that holds slots knows. Without `eyes`, nothing is looked at."""

    environment: str
    options: EnvironmentOptions
    eyes: EyesMaker | None = None


@dataclass(kw_only=True)
class _Slot:
    """An environment and its episode."""

    environment: Environment
    trial: Trial | None = None
    instruction: str = ""
    steps: int = 0
    frames: list[Array] = field(default_factory=list)


@dataclass(kw_only=True)
class Seconds:
    """Time of one or of many processes: simulating (with its pictures), encoding what is seen, filming."""

    simulate: float = 0.0
    encode: float = 0.0
    film: float = 0.0

    def add(self, other: "Seconds") -> None:
        """Add another process's time."""
        self.simulate += other.simulate
        self.encode += other.encode
        self.film += other.film


class Slots:
    """The slots of one process. Environments are opened when a slot is first used, and used again."""

    def __init__(self, setup: SlotsSetup) -> None:
        self._setup = setup
        self._slots: dict[int, _Slot] = {}
        self._eyes = None if setup.eyes is None else setup.eyes()
        self._seconds = Seconds()

    def run(self, commands: Iterable[Command]) -> tuple[list[Report], Seconds]:
        """Obey one command after another; the time it took."""
        self._seconds = Seconds()
        return [self._obey(command) for command in commands], self._seconds

    def close(self) -> None:
        """Close the environments."""
        for slot in self._slots.values():
            slot.environment.close()
        self._slots.clear()

    def _obey(self, command: Command) -> Report:
        if isinstance(command, Start):
            return self._start(self._slot(command.slot), command)
        slot = self._slot(command.slot)
        if isinstance(command, Act):
            return self._act(slot, command.slot, command.actions)
        return self._act(slot, command.slot, slot.environment.expert(), last=True)

    def _slot(self, number: int) -> _Slot:
        if number not in self._slots:
            environment = open_environment(self._setup.environment, self._setup.options)
            self._slots[number] = _Slot(environment=environment)
        return self._slots[number]

    def _start(self, slot: _Slot, command: Start) -> Report:
        trial = command.trial
        with _Timed(self._seconds, "simulate"):
            observation = slot.environment.reset(seed=trial.seed, index=trial.index, task=trial.task)
        slot.trial, slot.steps, slot.frames, slot.instruction = trial, 0, [], observation.instruction
        self._film(slot)
        return self._report(slot, command.slot, observation, success=False, done=False)

    def _act(self, slot: _Slot, number: int, actions: Iterable[Array], *, last: bool = False) -> Report:
        """Do actions; with `last` the episode is over after them, whatever came of it."""
        observation, success, done = None, False, False
        for action in actions:
            with _Timed(self._seconds, "simulate"):
                step = slot.environment.step(action, look=False)
            slot.steps += 1
            success, done = step.success, step.done
            if done or slot.steps % FILM_EVERY == 0:
                self._film(slot)
            if done:
                break
        done = done or last
        if not done and self._eyes is not None:
            with _Timed(self._seconds, "simulate"):
                observation = slot.environment.observe()
        return self._report(slot, number, observation, success=success, done=done)

    def _film(self, slot: _Slot) -> None:
        if slot.trial is not None and slot.trial.film:
            with _Timed(self._seconds, "film"):
                slot.frames.append(slot.environment.picture())

    def _report(
        self, slot: _Slot, number: int, observation: Observation | None, *, success: bool, done: bool
    ) -> Report:
        assert slot.trial is not None, "a slot acts before it starts"
        seen, film, problem = None, None, ""
        if observation is not None and self._eyes is not None and not done:
            try:
                with _Timed(self._seconds, "encode"):
                    seen = self._eyes(observation, moment_key(slot.trial, slot.steps))
            except BadClip as error:
                done, problem = True, error.reason
        if done and slot.frames:
            with _Timed(self._seconds, "film"):
                film = encode_mp4(slot.frames, slot.environment.spec.hz / FILM_EVERY)
            slot.frames = []
        return Report(
            slot=number,
            steps=slot.steps,
            success=success,
            done=done,
            instruction=slot.instruction,
            seen=seen,
            problem=problem,
            film=film,
        )


def moment_key(trial: Trial, step: int) -> str:
    """The name of a moment: what the random choice of its points depends on, as on the key of a stored clip."""
    return f"s{trial.seed}-{trial.index:06d}-{trial.task}-{step:05d}"


class _Timed:
    """Adds the time of a block to one of `Seconds`."""

    def __init__(self, seconds: Seconds, name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        passed = time.perf_counter() - self._start
        setattr(self._seconds, self._name, getattr(self._seconds, self._name) + passed)


def by_process(commands: Sequence[Command], processes: int) -> list[list[Command]]:
    """The commands of each process: slot s is held by process s modulo `processes`."""
    return [[command for command in commands if command.slot % processes == at] for at in range(processes)]
