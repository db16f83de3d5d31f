"""Normalised error on held-out clips, with bootstrap intervals over the clips.

Shape legend: n pairs, A dimensions, K clips, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from data_specs.arrays import Array

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the resampled means: a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """`nmse` is the mean of `by_dimension`, `ci95` its interval over held-out clips. 1.0 is predicting the mean."""

    nmse: float
    ci95: tuple[float, float]
    by_dimension: dict[str, float]


def score(prediction: Array, truth: Array, mean: Array, clip: Array, names: tuple[str, ...], *, seed: int = 0) -> Score:
    """Squared error of a prediction as a share of that of a constant, by dimension, and the mean over dimensions.

    The interval resamples whole clips with replacement: pairs of one clip are not independent.

    Args:
        prediction, truth: [n,A] on held-out clips.
        mean: [A], the constant to compare with: the mean of the training targets.
        clip: [n], the clip of each row.
        names: of the dimensions.
        seed: of the resampling; scores with equal clips and seed share their resamples.
    """
    wrong, spread = _ratio_parts((prediction - truth) ** 2, (truth - mean) ** 2, clip)
    nmse = wrong.sum(0) / spread.sum(0)
    times = _resamples(len(wrong), seed)
    means = ((times @ wrong) / (times @ spread)).mean(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return Score(
        nmse=float(nmse.mean()),
        ci95=(float(low), float(high)),
        by_dimension={name: float(value) for name, value in zip(names, nmse, strict=True)},
    )


def ratio(above: Array, below: Array, clip: Array, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Sum of `above` [n] over sum of `below` [n], with its 95 % bootstrap interval over clips."""
    top, bottom = _ratio_parts(above[:, None], below[:, None], clip)
    times = _resamples(len(top), seed)
    low, high = np.percentile((times @ top) / (times @ bottom), INTERVAL)
    return float(top.sum() / bottom.sum()), (float(low), float(high))


def _ratio_parts(above: Array, below: Array, clip: Array) -> tuple[Array, Array]:
    """Sums by clip f8 [K,A] of both."""
    names, member = np.unique(clip, return_inverse=True)
    sums = np.zeros((2, len(names), above.shape[1]))
    np.add.at(sums[0], member, above)
    np.add.at(sums[1], member, below)
    return sums[0], sums[1]


def _resamples(clips: int, seed: int) -> Array:
    """How often each clip is drawn in each resample, f8 [R,K]."""
    draws = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=RESAMPLES)
    return draws.astype(np.float64)
