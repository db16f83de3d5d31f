"""Mutual information between a prediction and the true action, by dimension.

Nearest-neighbour estimators cannot bear tens of dimensions and a few hundred pairs: their bias grows with the
dimension. So the features are reduced first, to the one number that the ridge probe makes of them for that dimension
of the action. It is a function of the features fixed on other clips, hence by the data processing inequality the
information it carries is a lower bound of what the features carry.
"""

import numpy as np
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from data_specs.arrays import Array

NEIGHBOURS = 3
FEW, OFTEN = 32, 4
"""A target is taken as discrete (the sum of gripper commands) when it has at most 32 distinct values, each of which
occurs 4 times on average."""


def mutual_information(prediction: Array, truth: Array, *, seed: int = 0) -> Array:
    """Nats f8 [A] between column a of `prediction` and of `truth`, both [n,A].

    The estimator of Kraskov, Stögbauer and Grassberger (2004) for continuous dimensions, that of Ross (2014) for
    discrete ones, 3 neighbours, as scikit-learn has them; estimates under 0 are 0.

    Args:
        prediction, truth: on held-out clips.
        seed: of the noise, 1e-10 of the scale, by which the estimators break ties.
    """
    nats = [
        _estimate(prediction[:, [a]], truth[:, a], seed=seed, neighbours=min(NEIGHBOURS, len(truth) - 1))
        for a in range(truth.shape[1])
    ]
    return np.array(nats)


def _estimate(feature: Array, target: Array, *, seed: int, neighbours: int) -> float:
    values, label = np.unique(target, return_inverse=True)
    if np.ptp(feature) == 0 or neighbours < 1:
        return 0.0  # a constant says nothing
    discrete = len(values) <= min(FEW, len(target) // OFTEN)
    estimate = mutual_info_classif if discrete else mutual_info_regression
    found = estimate(
        feature, label if discrete else target, discrete_features=False, n_neighbors=neighbours, random_state=seed
    )
    return float(found[0])
