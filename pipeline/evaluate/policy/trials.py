"""The episodes of a judgement: which there are, and what came of them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_specs.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Episode `index` of `seed` of a task; `number` counts all episodes of a judgement. `film`: keep its pictures."""

    number: int
    task: str
    seed: int
    index: int
    film: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialResult:
    """What came of a trial in `steps` control steps; `film` is MP4, where it was asked for. `problem`: why an
    observation could not be used, which ended it.
    """

    trial: Trial
    instruction: str
    success: bool
    steps: int
    problem: str = ""
    film: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What a policy is asked about: after `step` steps of a trial, `seen` is what its eyes made of the observation."""

    trial: Trial
    step: int
    seen: Any


def plan_trials(tasks: tuple[str, ...], episodes: int, *, seed: int, films: int) -> list[Trial]:
    """`episodes` of every task, task by task; of the first `films` of each, pictures are kept."""
    return [
        Trial(number=turn * episodes + index, task=task, seed=seed, index=index, film=index < films)
        for turn, task in enumerate(tasks)
        for index in range(episodes)
    ]


class Start(NamedTuple):
    """Begin a trial in a slot."""

    slot: int
    trial: Trial


class Act(NamedTuple):
    """Do actions f4 [k,A] in a slot, as many as the episode takes, then look."""

    slot: int
    actions: Array


class Follow(NamedTuple):
    """Let the environment's expert act in a slot until the episode is over."""

    slot: int


Command = Start | Act | Follow


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What came of a command: steps since the start; what is seen now, unless the episode is `done`; why what is seen
    cannot be used, which ends it.
    """

    slot: int
    steps: int
    success: bool
    done: bool
    instruction: str
    seen: Any = None
    problem: str = ""
    film: bytes | None = field(default=None, repr=False)
