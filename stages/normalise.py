"""States and actions between the dataset's own units and the numbers that a network works with.

Shape legend: B moments, H steps of a chunk, S dimensions of a state, A of an action, D of either.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mode = Literal["mean_std", "min_max", "quantile"]
Statistics = Mapping[str, Mapping[str, Sequence[float]]]
"""`state` and `action`, each with `mean`, `std`, `min`, `max`, `q01`, `q99` by dimension: the store's manifest."""

_KEYS = ("mean", "std", "min", "max", "q01", "q99")
_SAME = 1e-6
"""A range under this share of its greatest number is rounding of one constant."""


class View:
    """Another way to write states and actions, before they are normalised. This one changes nothing.

    Every method takes values in the dataset's units, or in those of the view before it; `state_BS` is always the
    dataset's.
    """

    def state_width(self, state: int) -> int:
        """Dimensions of the state as the network sees it."""
        return state

    def action_width(self, action: int) -> int:
        """Dimensions of the action as the network sees it."""
        return action

    def statistics(self, statistics: Statistics) -> Statistics:
        """Statistics of what this view makes of values with these."""
        return statistics

    def state(self, state_BS: Tensor) -> Tensor:
        """The state as the network sees it."""
        return state_BS

    def action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """The actions as the network sees them, at moments of these states."""
        return action_BHA

    def undo_action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """The inverse of `action`."""
        return action_BHA


class Scale(nn.Module):
    """(x - centre) / spread by dimension; a dimension of spread 0 is constant: 0 to the network, its constant again.

    What a network makes of a constant is never let through: normalised with a spread of 1, a constant dimension would
    add up small outputs of the network over a closed loop.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def set(self, name: str, statistics: Mapping[str, Any], mode: Mode) -> None:
        """Take the statistics of `name` (`state` or `action`, for the message).

        `mean_std` has mean 0 and deviation 1; `min_max` maps the least and the greatest to -1 and 1, `quantile` the
        1 % and the 99 % quantile. A dimension whose quantiles coincide though it varies (a gripper that is open nearly
        always) is mapped by its least and greatest. ValueError when there are too few or too many numbers, or bad ones.
        """
        mean, std, low, high, q01, q99 = (self._read(name, statistics, key) for key in _KEYS)
        if mode == "mean_std":
            centre, spread = mean, std
        elif mode in ("min_max", "quantile"):
            if mode == "quantile":
                narrow = _constant(q01, q99)
                q01, q99 = torch.where(narrow, low, q01), torch.where(narrow, high, q99)
            else:
                q01, q99 = low, high
            centre, spread = (q01 + q99) / 2, (q99 - q01) / 2
        else:
            raise ValueError(f"unknown normalisation {mode!r}: choose mean_std, min_max or quantile")
        constant = _constant(low, high)
        self.centre.copy_(torch.where(constant, (low + high) / 2, centre))
        self.spread.copy_(torch.where(constant, 0.0, spread))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised f4 [...,D]; nothing is clipped."""
        gain = torch.where(self.spread > 0, 1 / self.spread, 0.0)
        return (x.float() - self.centre) * gain

    def undo(self, x: Tensor) -> Tensor:
        """The inverse f4 [...,D]; nothing is clipped, so that an action may leave the range of the data."""
        return x.float() * self.spread + self.centre

    def _read(self, name: str, statistics: Mapping[str, Any], key: str) -> Tensor:
        if key not in statistics:
            raise ValueError(f"the statistics of {name} lack {key!r}: they need {', '.join(_KEYS)} by dimension")
        values = torch.as_tensor(statistics[key], dtype=torch.float64)
        if values.shape != self.centre.shape:
            raise ValueError(
                f"the statistics of {name} have {values.numel()} dimensions and the policy was built for "
                f"{len(self.centre)}: build it for the robot of the store"
            )
        if not bool(values.isfinite().all()):
            raise ValueError(f"the statistics of {name} have a {key} that is not finite: the data holds bad numbers")
        return values


def _constant(low_D: Tensor, high_D: Tensor) -> Tensor:
    largest = torch.maximum(low_D.abs(), high_D.abs())
    return high_D - low_D <= _SAME * largest + 1e-7


class ActionStateNormaliser(nn.Module):
    """Normalises states and actions by statistics that are buffers, and so part of a checkpoint.

    Views come first, in their order. Until `set_statistics`, centre 0 and spread 1.

    Args:
        state, action: dimensions in the dataset, 0 for none. mode: see `Scale.set`. views: ways to write them anew.
    """

    def __init__(self, *, state: int, action: int, mode: Mode = "quantile", views: Sequence[View] = ()) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.views = tuple(views)
        self.raw_state, self.raw_action = state, action
        for view in self.views:
            state, action = view.state_width(state), view.action_width(action)
        self.state_scale, self.action_scale = Scale(state), Scale(action)

    @property
    def state_width(self) -> int:
        """Dimensions of a state as the network sees it."""
        return len(self.state_scale.centre)

    @property
    def action_width(self) -> int:
        """Dimensions of an action as the network sees it."""
        return len(self.action_scale.centre)

    def set_statistics(self, statistics: Mapping[str, Any]) -> None:
        """Take the `statistics` of a store's manifest.

        ValueError when those of states or actions are missing, or are of another robot.
        """
        for name, width in (("state", self.raw_state), ("action", self.raw_action)):
            found = statistics.get(name, {})
            if width and "mean" not in found:
                raise ValueError(f"the statistics have no {name}: the store was made from a dataset without robot data")
            if width and len(found["mean"]) != width:
                raise ValueError(
                    f"the statistics of {name} have {len(found['mean'])} dimensions and the policy was built for "
                    f"{width}: build it for the robot of the store"
                )
        for view in self.views:
            statistics = view.statistics(statistics)
        for name, scale in (("state", self.state_scale), ("action", self.action_scale)):
            if len(scale.centre):
                scale.set(name, statistics[name], self.mode)

    def normalise_state(self, state_BS: Tensor) -> Tensor:
        """f4 [B, state_width]. ValueError for states of another robot."""
        _check("states", state_BS, self.raw_state)
        for view in self.views:
            state_BS = view.state(state_BS)
        normalised: Tensor = self.state_scale(state_BS)
        return normalised

    def normalise_action(self, action_BHA: Tensor, state_BS: Tensor | None = None) -> Tensor:
        """f4 [B, H, action_width] of chunks that begin at these states (which the hand frame needs)."""
        _check("actions", action_BHA, self.raw_action)
        for view in self.views:
            action_BHA = view.action(action_BHA, state_BS)
        normalised: Tensor = self.action_scale(action_BHA)
        return normalised

    def restore_action(self, normalised_BHA: Tensor, state_BS: Tensor | None = None) -> Tensor:
        """The inverse of `normalise_action`: f4 [B, H, A] in the dataset's units. Nothing is clipped."""
        action = self.action_scale.undo(normalised_BHA)
        for view in reversed(self.views):
            action = view.undo_action(action, state_BS)
        return action


def _check(what: str, values: Tensor, width: int) -> None:
    if values.shape[-1] != width:
        raise ValueError(
            f"the batch's {what} have {values.shape[-1]} dimensions and the policy was built for {width}: "
            "it belongs to another robot"
        )


def fixed_statistics(width: int) -> dict[str, list[float]]:
    """Statistics by which no mode changes anything: of numbers that are in [-1, 1] already."""
    known = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    return {key: [value] * width for key, value in known.items()}


def spliced(
    statistics: Mapping[str, Sequence[float]], start: int, stop: int, replacement: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Statistics with those of dimensions start:stop replaced."""
    return {
        key: [*statistics[key][:start], *replacement[key], *statistics[key][stop:]]
        for key in _KEYS
        if key in statistics
    }
