"""What a run says of the pairs of a store, beside what was truly done in them: arrays for the probe.

Shape legend: n pairs, C channels of the store, A dimensions of the action.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, TokenBatch
from pipeline.config import RequestError
from pipeline.evaluate.encoding import BATCH, Encoder, Latents
from pipeline.store.pairs import PairIndex

ACTION = "extra/action_sum"
TARGET = (
    "action_sum[later] - action_sum[first]: the sum of the actions of all control steps between the two frames, in the "
    "dataset's units; the last dimension of the tabletop is the gripper's command, +1 (close) or -1 (open) a step, and "
    "is summed like the others"
)
BASELINE = (
    "difference, later minus first, of the frame's mean frozen feature: distinct tokens weighted by how many points "
    "share them"
)
_NAMES = {"tabletop": ("x", "y", "z", "roll", "pitch", "yaw", "gripper")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Rows of n pairs.

    Attributes:
        rows: i8 [n], which pairs of the index. clip: i8 [n], clip of the store.
        latents: what the model made of them. baseline: f4 [n,C], see `BASELINE`. action: f8 [n,A], see `TARGET`.
    """

    rows: Array
    clip: Array
    latents: Latents
    baseline: Array
    action: Array

    def __len__(self) -> int:
        return len(self.rows)


def gather(
    encoder: Encoder, pairs: PairIndex, rows: Array, progress: Callable[[int], None] = lambda _: None
) -> Evidence:
    """Read and encode the pairs `rows` once; `progress` is called with how many are done.

    Raises:
        RequestError: the store has no accumulated actions.
    """
    if ACTION not in encoder.store.columns():
        raise RequestError(
            f"The store at {encoder.store.layout.url} has no column {ACTION}, the true action accumulated over a pair: "
            "a probe needs robot data. Extract it anew with this version of concerto-laq from a dataset that has "
            "actions, for example --dataset tabletop."
        )
    latents, baseline, action = [], [], []
    done = 0
    for batch in encoder.batches(pairs, rows, columns=("tokens", ACTION)):
        latents.append(encoder.encode_batch(batch))
        baseline.append((pooled(batch.second.need_tokens()) - pooled(batch.first.need_tokens())).cpu().numpy())
        action.append(_action(batch.second) - _action(batch.first))
        done += len(batch)
        progress(done)
    return Evidence(
        rows=rows,
        clip=pairs.clip[rows],
        latents=Latents.joined(latents),
        baseline=np.concatenate(baseline),
        action=np.concatenate(action),
    )


def pooled(tokens: TokenBatch) -> torch.Tensor:
    """The mean feature f4 [B,C] of each frame, over its points: distinct rows weighted by their counts."""
    weight = tokens.count.float()
    frames = len(tokens.offset) - 1
    total = weight.new_zeros(frames, tokens.feat.shape[1])
    total.index_add_(0, tokens.frame, tokens.feat.float() * weight[:, None])
    return total / weight.new_zeros(frames).index_add_(0, tokens.frame, weight)[:, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Mean squared errors of n groups of pairs by target: f8 [n] of the decoder and of copying the first frame.

    `weight` f8 [n] is the number of pairs of each group, `clip` i8 [n] the clip that all of them are of.
    """

    decoder: dict[str, Array]
    copy: dict[str, Array]
    weight: Array
    clip: Array


@torch.inference_mode()
def reconstruct(encoder: Encoder, pairs: PairIndex, rows: Array) -> Reconstruction:
    """How well the decoder foresees the later frame from the first one and the codes, clip by clip.

    Both errors are those of the model's own targets, over the cells that have points in both frames, as in training.
    """
    clip = pairs.clip[rows]
    groups = [
        part
        for member in np.split(rows, np.flatnonzero(np.diff(clip)) + 1)
        for part in np.split(member, range(BATCH, len(member), BATCH))
    ]
    found = []
    for group in groups:
        (batch,) = encoder.batches(pairs, group)
        _, metrics = encoder.model(batch)
        found.append({name: float(value) for name, value in metrics.items()})
    names = [name.removeprefix("copy/") for name in found[0] if name.startswith("copy/")]
    return Reconstruction(
        decoder={name: np.array([values[f"loss/{name}"] for values in found]) for name in names},
        copy={name: np.array([values[f"copy/{name}"] for values in found]) for name in names},
        weight=np.array([len(group) for group in groups], dtype=np.float64),
        clip=np.array([pairs.clip[group[0]] for group in groups]),
    )


def action_names(dataset: str, count: int) -> tuple[str, ...]:
    """Names of the dimensions of a dataset's actions; their numbers where it is not known."""
    names = _NAMES.get(dataset, ())
    return names if len(names) == count else tuple(str(i) for i in range(count))


def _action(frames: FrameBatch) -> Array:
    return frames.extra[ACTION.removeprefix("extra/")].cpu().numpy().astype(np.float64)
