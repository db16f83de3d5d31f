"""Open loop: how far a policy's chunks are from what was done, on episodes that it was not trained on.

Shape legend: B moments, H steps of a chunk, A dimensions of an action.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.batches import PolicyBatch
from stages.draw import Draw

_ARM = (*(f"joint {number}" for number in range(1, 7)), "gripper")
_NAMES = {
    7: ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    14: tuple(f"{side} {joint}" for side in ("left", "right") for joint in _ARM),
}


class Chunks(Protocol):
    """What gives chunks: a policy."""

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        """Chunks f4 [B,H,A] in the dataset's units."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenLoop:
    """The error of chunks.

    Attributes:
        policy: what names the run. store: what names the data.
        names: of the A dimensions. frames, clips: how many moments, of how many held-out episodes.
        count: f8 [H], moments that have a step there. absolute, squared: f8 [H,A], mean error of it and of its square.
        spread: f8 [A], standard deviation of the training actions. constant: f8 [H,A], the mean absolute error of the
            training actions' mean, for comparison.
    """

    policy: Mapping[str, Any]
    store: Mapping[str, Any]
    names: tuple[str, ...]
    frames: int
    clips: int
    count: Array
    absolute: Array
    squared: Array
    spread: Array
    constant: Array

    @property
    def horizon(self) -> int:
        """Steps of a chunk."""
        return len(self.count)

    @property
    def varying(self) -> Array:
        """Dimensions bool [A] that vary at all in training: only there is an error a share of the spread."""
        return np.asarray(self.spread > 1e-6 * max(float(self.spread.max()), np.finfo(np.float64).tiny))

    def by_dimension(self, error: Array) -> Array:
        """The mean over steps [A] of an error [H,A], each step as often as it occurred."""
        return np.asarray((error * self.count[:, None]).sum(0) / self.count.sum())

    def normalised(self, error: Array) -> Array:
        """An error [H,A] as a share of the spread, of the dimensions that vary."""
        return np.asarray(error[:, self.varying] / self.spread[self.varying])

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        normalised, constant = self.normalised(self.absolute), self.normalised(self.constant)
        moving = [name for name, varies in zip(self.names, self.varying, strict=True) if varies]
        weights = self.count / self.count.sum()
        return {
            "open_loop": {
                "normalised_error": float((normalised.mean(1) * weights).sum()),
                "normalised_error_of_the_mean": float((constant.mean(1) * weights).sum()),
                "normalised_error_by_step": normalised.mean(1).tolist(),
                "normalised_error_by_dimension": dict(
                    zip(moving, (normalised * weights[:, None]).sum(0).tolist(), strict=True)
                ),
                "absolute_error_by_dimension": self._named(self.by_dimension(self.absolute)),
                "rms_error_by_dimension": self._named(np.sqrt(self.by_dimension(self.squared))),
                "absolute_error": {name: self.absolute[:, at].tolist() for at, name in enumerate(self.names)},
                "std_by_dimension": self._named(self.spread),
                "dimensions": list(self.names),
                "horizon": self.horizon,
                "steps": self.count.astype(int).tolist(),
            },
            "frames": self.frames,
            "clips": self.clips,
            "policy": dict(self.policy),
            "store": dict(self.store),
        }

    def _named(self, values: Array) -> dict[str, float]:
        return dict(zip(self.names, values.tolist(), strict=True))


def dimension_names(dims: int) -> tuple[str, ...]:
    """What the dimensions of an action are called: those of an arm's hand, or of two arms' joints, or their numbers."""
    return _NAMES.get(dims, tuple(str(at) for at in range(dims)))


@torch.inference_mode()
def measure(
    policy: Chunks,
    batches: Iterable[PolicyBatch],
    *,
    mean: Sequence[float],
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, Array]:
    """Sums over moments: `count` [H], and `absolute`, `squared`, `constant` [H,A], means of their steps.

    Steps past the end of an episode do not count. `mean` [A] is the constant to compare with; `seed` is that of heads
    that draw.
    """
    total: dict[str, Tensor] = {}
    done = 0
    for number, batch in enumerate(batches):
        action, is_pad = batch.need_action()
        draw = Draw.whole(len(batch), seed=seed, step=number, device=action.device)
        chunk = policy.act(batch, draw)[:, : action.shape[1]].double()
        truth, real = action.double(), (~is_pad).double()[..., None]
        constant = truth - torch.as_tensor(mean, dtype=torch.float64, device=truth.device)
        parts = {
            "count": real.sum((0, 2)),
            "absolute": ((chunk - truth).abs() * real).sum(0),
            "squared": ((chunk - truth).square() * real).sum(0),
            "constant": (constant.abs() * real).sum(0),
        }
        total = {name: total.get(name, 0) + value.cpu() for name, value in parts.items()}
        done += len(batch)
        progress(done)
    if not total:
        raise ValueError("there are no moments to measure an error at")
    count = total["count"].clamp(min=1)[:, None]
    return {name: (value if name == "count" else value / count).numpy() for name, value in total.items()}
