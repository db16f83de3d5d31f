"""How much of the true action a set of features carries: a linear and a small nonlinear probe, judged on other clips.

Arrays in, numbers out: what the features are and where they come from is not decided here.
Shape legend: n and m pairs for fitting and for judging, D features, A dimensions of the action.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_specs.arrays import Array
from pipeline.evaluate.information import mutual_information
from pipeline.evaluate.mlp import fit_mlp
from pipeline.evaluate.score import Score, score
from pipeline.ridge import fit_ridge

STILL = 1e-6
"""A dimension varies when its standard deviation is more than this share of the greatest one."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What the probes say of one set of features.

    Attributes:
        linear: the ridge probe's score.
        mlp: that of the multilayer perceptron, None when it was not asked for.
        mutual_information: nats by dimension, a lower bound (see `pipeline.evaluate.information`).
        strength: the ridge penalty chosen for each dimension (see `pipeline.ridge`).
        left_out: dimensions that do not vary, and count nowhere.
    """

    linear: Score
    mlp: Score | None
    mutual_information: dict[str, float]
    strength: dict[str, float]
    left_out: tuple[str, ...]


def probe(
    x_train: Array,
    y_train: Array,
    x_val: Array,
    y_val: Array,
    *,
    clip_train: Array,
    clip_val: Array,
    names: Sequence[str] | None = None,
    standardise: bool = True,
    mlp: bool = True,
    seed: int = 0,
) -> ProbeResult:
    """Fit probes from features to actions on some clips, and judge them on others.

    Args:
        x_train, y_train: features [n,D] and actions [n,A] to fit from.
        x_val, y_val: features [m,D] and actions [m,A] to judge by.
        clip_train, clip_val: [n], [m], the clip of each pair; no clip may be in both.
        names: of the A dimensions; `0`, `1`, … without.
        standardise: scale every feature to unit variance. Not for one-hot codes: there the penalty must hold a rare
            code back more than a frequent one, and scaling would undo that.
        mlp: fit the multilayer perceptron too.
        seed: of folds, perceptron and resampling; equal arguments give equal results.

    Returns:
        Normalised errors (1.0 is predicting the mean of the training actions) with intervals, and mutual information.

    Raises:
        ValueError: arrays that do not fit together or are not finite, a clip on both sides, fewer than two clips to
            fit from, or no dimension that varies on both sides.
    """
    labels = tuple(str(i) for i in range(y_train.shape[1])) if names is None else tuple(names)
    _check(x_train, y_train, clip_train, labels)
    _check(x_val, y_val, clip_val, labels)
    if shared := np.intersect1d(clip_train, clip_val).tolist():
        raise ValueError(f"{len(shared)} clips are on both sides of the probe, clip {shared[0]} for one")
    moves = _varies(y_train) & _varies(y_val)
    if not moves.any():
        raise ValueError(f"no dimension of the action ({', '.join(labels)}) varies: there is nothing to predict")
    kept = tuple(name for name, move in zip(labels, moves, strict=True) if move)
    mean, scale = y_train[:, moves].mean(0, dtype=np.float64), y_train[:, moves].std(0, dtype=np.float64)
    target, truth = (y_train[:, moves] - mean) / scale, (y_val[:, moves] - mean) / scale
    train, val = _scaled(x_train, x_val, by_column=standardise)

    ridge = fit_ridge(train, target, clip_train, seed=seed)
    linear = ridge(val)
    zero = np.zeros(len(kept))
    nonlinear = None
    if mlp:
        predict = fit_mlp(train, target, clip_train, seed=seed)
        nonlinear = score(predict(val), truth, zero, clip_val, kept, seed=seed)
    nats = mutual_information(linear, y_val[:, moves], seed=seed)
    return ProbeResult(
        linear=score(linear, truth, zero, clip_val, kept, seed=seed),
        mlp=nonlinear,
        mutual_information={name: float(value) for name, value in zip(kept, nats, strict=True)},
        strength={name: float(value) for name, value in zip(kept, ridge.strength, strict=True)},
        left_out=tuple(name for name in labels if name not in kept),
    )


def one_hot(codes: Array, size: int) -> Array:
    """Codes i8 [n,K] of `size` values each as f4 [n, K*size], a column for each place and value."""
    n, places = codes.shape
    out = np.zeros((n, places, size), dtype=np.float32)
    out[np.arange(n)[:, None], np.arange(places), codes] = 1
    return out.reshape(n, places * size)


def _check(x: Array, y: Array, clip: Array, names: tuple[str, ...]) -> None:
    if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(clip) or y.shape[1] != len(names):
        raise ValueError(
            f"expected features [n,D], actions [n,{len(names)}] and clips [n], got {x.shape}, {y.shape}, {clip.shape}"
        )
    if not len(x):
        raise ValueError("there are no pairs on one side of the probe")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features or actions are not finite: a probe of them would say nothing")


def _varies(y: Array) -> Array:
    spread = y.std(0, dtype=np.float64)
    return np.asarray(spread > STILL * max(float(spread.max()), np.finfo(np.float64).tiny))


def _scaled(train: Array, val: Array, *, by_column: bool) -> tuple[Array, Array]:
    """Both around the training mean, and of unit variance: each column, or all of them together."""
    mean, spread = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    unit = spread if by_column else np.full_like(spread, np.sqrt((spread**2).mean()))
    # a feature that is constant on the training clips says nothing there and must not explode on the others
    dead = unit <= STILL * max(float(spread.max()), np.finfo(np.float64).tiny)
    scale = np.where(dead, 0.0, 1 / np.where(dead, 1.0, unit))
    return (train - mean) * scale, (val - mean) * scale
