"""From predicted chunks to the actions that are executed, for several environments in parallel.

    rows = execution.wanting()
    actions_EA = execution.step(policy.act(observe(rows)) if len(rows) else None)

Shape legend: E environments, R environments that want a new chunk, H steps of a chunk, A dimensions of an action.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Execution(ABC):
    """Which environments want a new chunk, and what each does next."""

    def __init__(self, environments: int, horizon: int) -> None:
        if environments < 1 or horizon < 1:
            raise ValueError(f"{environments} environments and chunks of {horizon} steps: both must be at least 1")
        self.environments, self.horizon = environments, horizon

    @abstractmethod
    def reset(self, rows: Tensor | None = None) -> None:
        """Forget the chunks of the environments `rows` i8 [R], which begin a new episode; of all when None."""

    @abstractmethod
    def wanting(self) -> Tensor:
        """Environments i8 [R], in ascending order, that need a chunk for their next step."""

    @abstractmethod
    def step(self, chunks_RHA: Tensor | None = None) -> Tensor:
        """The next actions f4 [E,A] of all environments, from new chunks of those that are wanting.

        ValueError unless there is one chunk of H steps for each of `wanting()`.
        """

    def _checked(self, chunks_RHA: Tensor | None, rows: Tensor) -> Tensor | None:
        given = (0, self.horizon) if chunks_RHA is None else tuple(chunks_RHA.shape[:2])
        if given != (len(rows), self.horizon):
            raise ValueError(
                f"{given[0]} chunks of {given[1]} steps, expected {len(rows)} of {self.horizon}: one for each of "
                "wanting()"
            )
        return None if chunks_RHA is None else chunks_RHA.detach().float()


class ChunkExecution(Execution):
    """The first `execute` steps of a chunk, one after the other, then the next chunk."""

    def __init__(self, environments: int, horizon: int, execute: int | None = None) -> None:
        super().__init__(environments, horizon)
        self.execute = horizon if execute is None else execute
        if not 1 <= self.execute <= horizon:
            raise ValueError(f"cannot execute {execute} steps of a chunk of {horizon}: choose 1 to {horizon}")
        self._chunks_EHA: Tensor | None = None
        self._done_E = torch.full((environments,), self.execute)

    def reset(self, rows: Tensor | None = None) -> None:
        """See `Execution.reset`."""
        self._done_E[slice(None) if rows is None else rows] = self.execute

    def wanting(self) -> Tensor:
        """See `Execution.wanting`."""
        return (self._done_E >= self.execute).nonzero().flatten()

    def step(self, chunks_RHA: Tensor | None = None) -> Tensor:
        """See `Execution.step`."""
        rows = self.wanting()
        chunks_RHA = self._checked(chunks_RHA, rows)
        if chunks_RHA is not None:
            if self._chunks_EHA is None:
                self._chunks_EHA = chunks_RHA.new_zeros(self.environments, *chunks_RHA.shape[1:])
            self._chunks_EHA[rows.to(chunks_RHA.device)] = chunks_RHA
            self._done_E[rows] = 0
        assert self._chunks_EHA is not None, "an environment without a chunk is wanting"
        device = self._chunks_EHA.device
        actions_EA = self._chunks_EHA[torch.arange(self.environments, device=device), self._done_E.to(device)]
        self._done_E += 1
        return actions_EA


class TemporalEnsemble(Execution):
    """A new chunk at every step; the action is the weighted mean of all that was predicted for that step.

    Weights are exp(-decay * i), with i = 0 the oldest prediction (Zhao et al., RSS 2023, algorithm 2, with m = 0.01):
    a `decay` above 0 trusts older predictions more. Sums are kept and not the chunks themselves, so that a step costs
    the same however many predictions there are.
    """

    def __init__(self, environments: int, horizon: int, decay: float = 0.01) -> None:
        super().__init__(environments, horizon)
        self.decay = decay
        self._sum_EHA: Tensor | None = None
        self._weight_EH: Tensor | None = None
        self._count_EH: Tensor | None = None

    def reset(self, rows: Tensor | None = None) -> None:
        """See `Execution.reset`."""
        for kept in (self._sum_EHA, self._weight_EH, self._count_EH):
            if kept is not None:
                kept[slice(None) if rows is None else rows.to(kept.device)] = 0

    def wanting(self) -> Tensor:
        """All environments."""
        return torch.arange(self.environments)

    def step(self, chunks_RHA: Tensor | None = None) -> Tensor:
        """See `Execution.step`."""
        chunks_EHA = self._checked(chunks_RHA, self.wanting())
        assert chunks_EHA is not None
        if self._sum_EHA is None or self._weight_EH is None or self._count_EH is None:
            self._sum_EHA = torch.zeros_like(chunks_EHA)
            self._weight_EH, self._count_EH = (torch.zeros_like(chunks_EHA[..., 0]) for _ in range(2))
        weight_EH = torch.exp(-self.decay * self._count_EH)
        total_EHA = self._sum_EHA + weight_EH[..., None] * chunks_EHA
        weights_EH = self._weight_EH + weight_EH
        self._sum_EHA, self._weight_EH = _next_step(total_EHA), _next_step(weights_EH)
        self._count_EH = _next_step(self._count_EH + 1)
        return total_EHA[:, 0] / weights_EH[:, :1]


def _next_step(x_EH: Tensor) -> Tensor:
    """The sums of the steps to come, as seen from the next step: nothing is known of the last one yet."""
    return torch.cat([x_EH[:, 1:], torch.zeros_like(x_EH[:, :1])], dim=1)
