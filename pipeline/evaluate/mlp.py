"""The small multilayer perceptron of the probe: two hidden layers of 128, stopped early on clips it does not see.

Shape legend: n pairs, D features, A dimensions of the target.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from data_specs.arrays import Array
from pipeline.ridge import group_folds

HIDDEN = 128
BATCH = 128
RATE = 1e-3
DECAY = 1e-2
EPOCHS = 150
PATIENCE = 15
"""Epochs without a better error on the inner clips after which training ends."""
INNER = 8
"""One of so many parts of the clips is set aside for early stopping."""


def fit_mlp(x: Array, y: Array, group: Array, *, seed: int = 0) -> Callable[[Array], Array]:
    """Fit D -> 128 -> 128 -> A (GELU) by AdamW on the mean squared error.

    The weights kept are those of the epoch with the least error on an eighth of the clips, which are not trained on.

    Args:
        x, y: features [n,D] and targets [n,A], both of about unit scale.
        group: [n], the clip of each row.
        seed: of the initial weights, the split and the order of the batches; the same seed gives the same network.

    Returns:
        The prediction f8 [n,A] of features [n,D].

    Raises:
        ValueError: fewer than two groups.
    """
    inner = torch.from_numpy(group_folds(group, INNER, seed) == 0)
    xs, ys = (torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) for array in (x, y))
    generator = torch.Generator().manual_seed(seed)
    network = _network(xs.shape[1], ys.shape[1], generator)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, foreach=True)
    best, since, kept = float("inf"), 0, network.state_dict()
    train_x, train_y = xs[~inner], ys[~inner]
    for _ in range(EPOCHS):
        order = torch.randperm(len(train_x), generator=generator)
        for chosen in torch.split(order, BATCH):
            optimiser.zero_grad()
            loss = (network(train_x[chosen]) - train_y[chosen]).square().mean()
            loss.backward()
            optimiser.step()
        with torch.inference_mode():
            error = float((network(xs[inner]) - ys[inner]).square().mean())
        since += 1
        if error < best:
            best, since, kept = error, 0, {name: value.clone() for name, value in network.state_dict().items()}
        if since >= PATIENCE:
            break
    network.load_state_dict(kept)

    def predict(features: Array) -> Array:
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
            out: Array = network(rows).numpy().astype(np.float64)
        return out

    return predict


def _network(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    widths = (inputs, HIDDEN, HIDDEN, outputs)
    # of our own generator: a probe must neither depend on the global random state nor move it
    with torch.device("meta"):
        empty = [nn.Linear(a, b) for a, b in pairwise(widths)]
    linears = [linear.to_empty(device="cpu") for linear in empty]
    for linear in linears:
        bound = linear.in_features**-0.5
        nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(linears[0], nn.GELU(), linears[1], nn.GELU(), linears[2])
