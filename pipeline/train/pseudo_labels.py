"""Pseudo-labels: what was done in clips whose actions are not seen, told by their latent actions.

A ridge regression from codes to chunks is fitted to the labelled clips and asked about the others. That is the use VPT
(Baker et al. 2022) makes of an inverse dynamics model, with one that has learned from all clips what happens in them
and needs the labels to be read alone, as the decoder of LAPO (Schmidt & Jiang, ICLR 2024). A linear one: a code stands
for a vector, and in Concerto-LAQ motions that follow one another add up in it. Steps after the end of a clip hold its
last action, as stores have them, and are told so; the policy does not learn them.

Shape legend: F frames of all stores, n moments, L numbers of a pair's latent, S dimensions of the state, H steps of a
chunk, A dimensions of an action, D features of a moment, P parts of an offset.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_specs.actions import CHUNK_COLUMN
from data_specs.arrays import Array
from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.ridge import Ridge, fit_ridge
from pipeline.train.policy_codes import CodesOfFrames
from pipeline.train.policy_stores import PolicyStores

PARTS = 5
"""Of the codes' offset: so far apart begin the pairs that an action is read from. They are those that are under way at
the moment or end with it, and those that begin before its own pair ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoLabels:
    """A decoder of latent actions, and the moments whose actions are taken from it.

    Attributes:
        decoded: bool [F], of which frames.
        error: f8 [A], squared error on labelled clips that the decoder was not fitted to, as a share of the variance;
            1 is predicting the mean. NaN for a dimension that does not vary.
        clips: how many labelled clips it was fitted to.
    """

    decoded: Array
    error: Array
    clips: int
    _features: "_Features"
    _ridge: Ridge
    _low: Array
    _high: Array

    @classmethod
    def fit(
        cls, stores: PolicyStores, codes: CodesOfFrames, *, labelled: Array, unseen: Array, horizon: int, state: bool
    ) -> "PseudoLabels":
        """A decoder fitted to the clips `labelled` for those `unseen`, i8 each.

        Args:
            stores, codes: the codes with their latents, of frames of the stores.
            horizon: steps of a chunk.
            state: whether the robot's state is among what the action is read from, beside the codes.

        Raises RequestError when there are fewer than two labelled clips, or files of codes without latents.
        """
        if len(labelled) < 2:
            raise RequestError(
                f"labels.pseudo reads actions from codes as the labelled clips teach it, and {len(labelled)} is "
                "labelled: give 2 or more (labels.fraction, labels.max_clips)."
            )
        around = _Features.of(stores, codes, state=state)
        frames = stores.frames_of(labelled)
        there = around.any(frames)
        if not there.any():
            raise RequestError("None of the labelled clips has a code: label the whole store with `cla label`.")

        def seen(name: str, steps: int | None = None) -> Array:
            return np.concatenate([stores.array(name, int(clip))[:, :steps] for clip in labelled])[there]

        rows, chunks = frames[there], seen(CHUNK_COLUMN, horizon).astype(np.float64)  # stores' chunks differ in length
        states = seen("state") if state else None
        features = around.standardised(rows, states)
        ridge = fit_ridge(features(rows, states), chunks.reshape(len(chunks), -1), stores.clip_of(rows))
        spread = chunks.var(axis=0).mean(axis=0)
        varies = spread > 1e-12
        error = np.full(len(spread), np.nan)
        error[varies] = ridge.error.reshape(horizon, -1).mean(axis=0)[varies] / spread[varies]
        decoded = np.zeros(int(stores.start[-1]), dtype=bool)
        others = stores.frames_of(unseen)
        decoded[others[features.any(others)]] = True
        return cls(
            decoded=decoded,
            error=error,
            clips=len(labelled),
            _features=features,
            _ridge=ridge,
            _low=chunks.min(axis=(0, 1)),
            _high=chunks.max(axis=(0, 1)),
        )

    def put_into(self, batch: PolicyBatch, moments: Array) -> PolicyBatch:
        """The batch of these moments with the actions of those that are decoded."""
        rows = np.flatnonzero(self.decoded[moments])
        if not len(rows):
            return batch
        states = batch.need_state().numpy()[rows] if self._features.state else None
        action = batch.need_action()[0].clone()
        action[torch.from_numpy(rows)] = torch.from_numpy(self.chunks(moments[rows], states)[:, : action.shape[1]])
        return replace(batch, action=action)

    def chunks(self, moments: Array, states: Array | None) -> Array:
        """The chunks f4 [n,H,A] of moments with states f4 [n,S], within what the labelled clips' actions reach."""
        flat = self._ridge(self._features(moments, states))
        chunks = flat.reshape(len(moments), -1, len(self._low))
        return np.clip(chunks, self._low, self._high).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """For `run.json`."""
        error = [None if np.isnan(value) else round(float(value), 4) for value in self.error]
        return {"frames": int(self.decoded.sum()), "fitted_to": self.clips, "error": error}

    def note(self) -> str:
        """How well actions are read, in a sentence."""
        error = ", ".join("still" if np.isnan(value) else f"{value:.2f}" for value in self.error)
        return (
            f"{int(self.decoded.sum())} frames have pseudo-labels, read from their codes as {self.clips} labelled "
            "clips teach it; squared error on clips left out, by dimension, as a share of the variance (the mean has "
            f"1): {error}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Features:
    """Of moments: the latents of the pairs around them, whether there are any, and the state.

    `latent` f4 [F,L], `has` bool [F]; `start` i8 and `step` f8 [clips]: frames from one pair to the next.
    """

    latent: Array
    has: Array
    start: Array
    step: Array
    state: bool
    mean: Array
    scale: Array

    @classmethod
    def of(cls, stores: PolicyStores, codes: CodesOfFrames, *, state: bool) -> "_Features":
        latent = codes.need_latents()
        offset = float(codes.facts[0]["offset_seconds"])
        step = np.array([offset / PARTS * stores.frame_rate(clip) for clip in range(len(stores))])
        return cls(
            latent=latent,
            has=codes.codes[:, 0] >= 0,
            start=stores.start,
            step=step,
            state=state,
            mean=np.zeros(1),
            scale=np.ones(1),
        )

    def standardised(self, moments: Array, states: Array | None) -> "_Features":
        """The same, of zero mean and unit spread over these moments."""
        raw = self._raw(moments, states)
        scale = raw.std(axis=0)
        return _Features(
            **{**vars(self), "mean": raw.mean(axis=0), "scale": np.where(scale > 1e-6, scale, 1.0)},
        )

    def __call__(self, moments: Array, states: Array | None) -> Array:
        """f8 [n,D]."""
        return (self._raw(moments, states) - self.mean) / self.scale

    def any(self, moments: Array) -> Array:
        """Which moments bool [n] have a pair around them."""
        return np.asarray(self._around(moments)[1].any(axis=1))

    def _around(self, moments: Array) -> tuple[Array, Array]:
        """The frames i8 [n,2P] at which the pairs around moments begin, and which of them are pairs."""
        clip = np.searchsorted(self.start, moments, side="right") - 1
        way = np.rint(np.arange(-PARTS, PARTS) * self.step[clip, None]).astype(np.int64)
        frame = moments[:, None] + way
        inside = (frame >= self.start[clip, None]) & (frame < self.start[clip + 1, None])
        frame = np.where(inside, frame, 0)
        return frame, inside & self.has[frame]

    def _raw(self, moments: Array, states: Array | None) -> Array:
        frame, there = self._around(moments)
        latents = np.where(there[..., None], self.latent[frame], 0.0).reshape(len(moments), -1)
        parts = [latents, there.astype(np.float64)]
        if self.state:
            assert states is not None, "it was fitted with the state"
            parts.append(states.astype(np.float64))
        return np.concatenate(parts, axis=1)
