"""From chunks of actions to what is done until the policy looks again.

Shape legend: H steps of a chunk, A dimensions of an action, k steps until the next look.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from data_specs.arrays import Array
from pipeline.config import RequestError, suggest
from stages.ensembling import ChunkExecution, TemporalEnsemble

Kind = Literal["chunk", "ensemble"]
KINDS: tuple[Kind, ...] = ("chunk", "ensemble")
DEFAULT_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Execution:
    """`chunk`: the first `steps` actions of a chunk are done, then the policy looks again. `ensemble`: it looks at
    every step, and an action is the mean over all chunks so far that reach it (`stages.ensembling`).
    """

    kind: Kind
    steps: int
    horizon: int

    @classmethod
    def choose(cls, kind: str, steps: int | None, horizon: int) -> "Execution":
        """Check a request for a policy of chunks of `horizon` steps; RequestError when it cannot be met.

        Without `steps`, a chunk is done whole, or the first 10 steps of it.
        """
        if kind == "ensemble":
            if steps not in (None, 1):
                raise RequestError(f"--execute ensemble looks at every step: leave out --execute-steps {steps}.")
            return cls(kind="ensemble", steps=1, horizon=horizon)
        if kind != "chunk":
            raise RequestError(f"--execute {kind} is unknown: expected {' or '.join(KINDS)}.{suggest(kind, KINDS)}")
        steps = min(DEFAULT_STEPS, horizon) if steps is None else steps
        if not 1 <= steps <= horizon:
            raise RequestError(
                f"--execute-steps {steps} cannot be done: the policy gives {horizon} actions at a time; expected 1 to "
                f"{horizon}."
            )
        return cls(kind="chunk", steps=steps, horizon=horizon)

    def start(self) -> "Executor":
        """For a new episode."""
        return Executor(self)


class Executor:
    """The chunks of one episode."""

    def __init__(self, execution: Execution) -> None:
        if execution.kind == "chunk":
            self._execution: ChunkExecution | TemporalEnsemble = ChunkExecution(1, execution.horizon, execution.steps)
        else:
            self._execution = TemporalEnsemble(1, execution.horizon)

    def actions(self, chunk: Array) -> Array:
        """What to do until the next look: actions f4 [k,A], given the chunk f4 [H,A] that begins now."""
        actions = [self._execution.step(torch.from_numpy(chunk)[None])]
        while not len(self._execution.wanting()):
            actions.append(self._execution.step())
        done: Array = torch.cat(actions).numpy()
        return done
