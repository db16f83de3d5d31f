"""Ridge regression whose strength is chosen by cross-validation over groups.

Shape legend: n pairs, D features, A dimensions of the target.
"""

from dataclasses import dataclass

import numpy as np

from data_specs.arrays import Array

FOLDS = 5
STRENGTHS = np.logspace(-6, 3, 19)
"""Penalties tried, as a share of the mean squared norm of the features' columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A fitted ridge regression: `weight` f8 [D,A], `bias` f8 [A]; `strength` f8 [A] as chosen, of `STRENGTHS`.

    `error` f8 [A] is the mean squared error that it had on groups that were held out.
    """

    weight: Array
    bias: Array
    strength: Array
    error: Array

    def __call__(self, x: Array) -> Array:
        """Prediction f8 [n,A] for features [n,D]."""
        return x @ self.weight + self.bias


def fit_ridge(x: Array, y: Array, group: Array, *, seed: int = 0) -> Ridge:
    """Fit, with the penalty of each target dimension that does best when whole groups are held out.

    Args:
        x: features [n,D]; the penalty treats all columns alike, so they should be of like scale.
        y: targets [n,A].
        group: [n], the clip of each row; rows of a clip are never on both sides of a fold.
        seed: decides which groups share a fold.

    Raises:
        ValueError: fewer than two groups.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fold = group_folds(group, FOLDS, seed)
    parts = [_Moments.of(x[fold == f], y[fold == f]) for f in range(int(fold.max()) + 1)]
    whole = _Moments.total(parts)
    error = np.zeros((len(STRENGTHS), y.shape[1]))
    for f, part in enumerate(parts):
        held_x, held_y = x[fold == f], y[fold == f]
        for s, (weight, bias) in enumerate((whole - part).solve()):
            error[s] += ((held_y - held_x @ weight - bias) ** 2).sum(axis=0)
    best = error.argmin(axis=0)
    solved = whole.solve()
    columns = np.arange(y.shape[1])
    weight, bias = (np.stack([solution[i] for solution in solved]) for i in (0, 1))
    return Ridge(
        weight=weight[best, :, columns].T,
        bias=bias[best, columns],
        strength=STRENGTHS[best],
        error=error[best, columns] / len(x),
    )


def group_folds(group: Array, folds: int, seed: int) -> Array:
    """The fold i8 [n] of each row, at most `folds` of them; groups are dealt out in a random order.

    Raises:
        ValueError: fewer than two groups.
    """
    names, member = np.unique(group, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"a probe needs pairs of at least 2 clips to be fitted, got {len(names)}")
    turn = np.random.default_rng(seed).permutation(len(names)) % min(folds, len(names))
    return np.asarray(turn[member])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moments:
    """Sums over rows that a ridge regression needs; those of a fold can be taken away from those of all."""

    n: int
    x: Array
    y: Array
    xx: Array
    xy: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> "_Moments":
        return cls(n=len(x), x=x.sum(0), y=y.sum(0), xx=x.T @ x, xy=x.T @ y)

    @classmethod
    def total(cls, parts: list["_Moments"]) -> "_Moments":
        n, *sums = (
            sum(getattr(p, name) for p in parts[1:]) + getattr(parts[0], name) for name in ("n", "x", "y", "xx", "xy")
        )
        return cls(n=n, **dict(zip(("x", "y", "xx", "xy"), sums, strict=True)))

    def __sub__(self, other: "_Moments") -> "_Moments":
        return _Moments(
            n=self.n - other.n, x=self.x - other.x, y=self.y - other.y, xx=self.xx - other.xx, xy=self.xy - other.xy
        )

    def solve(self) -> list[tuple[Array, Array]]:
        """Weight [D,A] and bias [A] for each of `STRENGTHS`, from one eigendecomposition."""
        mean_x, mean_y = self.x / self.n, self.y / self.n
        value, vector = np.linalg.eigh(self.xx - self.n * np.outer(mean_x, mean_x))
        value = np.clip(value, 0, None)
        turned = vector.T @ (self.xy - self.n * np.outer(mean_x, mean_y))
        unit = max(float(value.mean()), np.finfo(np.float64).tiny)
        weights = [vector @ (turned / (value + strength * unit)[:, None]) for strength in STRENGTHS]
        return [(weight, mean_y - mean_x @ weight) for weight in weights]
