import copy
import itertools
import math

import pytest
import torch
from torch import nn

from pipeline.train.optim import WeightAverage, learning_rate, make_optimizer, set_learning_rate
from pipeline.train_config import TrainSection


def test_the_rate_warms_up_and_falls_to_its_last_share() -> None:
    section = TrainSection(steps=100, warmup=10, lr=2.0, lr_final=0.25)
    rates = [learning_rate(section, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0 and all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(section, 55) == pytest.approx(2.0 * (0.25 + 0.75 * 0.5))
    assert learning_rate(section, 100) == pytest.approx(0.5) == learning_rate(section, 1000)
    assert learning_rate(TrainSection(steps=1, warmup=0, lr=1.0), 0) == 1.0


def test_only_matrices_of_linear_maps_decay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.conv = nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv2d(1, 1, 2)
            self.codebook = nn.Parameter(torch.zeros(4, 3))
            self.frozen = nn.Linear(3, 3).requires_grad_(False)

    net = Net()
    groups = make_optimizer(net, TrainSection(weight_decay=0.1)).param_groups
    decaying = {id(p) for p in groups[0]["params"]}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.1, 0.0)
    assert decaying == {id(net.linear.weight), id(net.conv.weight)}
    others = {id(p) for p in groups[1]["params"]}
    assert id(net.codebook) in others and len(others) == 5


def test_parameters_of_a_part_can_have_a_share_of_the_rate() -> None:
    net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    before = copy.deepcopy(net.state_dict())
    optimizer = make_optimizer(net, TrainSection(weight_decay=0.0), {"backbone.": 0.1})
    set_learning_rate(optimizer, 1.0)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: float((value - before[name]).abs().mean()) for name, value in net.state_dict().items()}
    assert moved["head.weight"] == pytest.approx(1.0) and moved["head.bias"] == pytest.approx(1.0)
    assert moved["backbone.weight"] == pytest.approx(0.1) and moved["backbone.bias"] == pytest.approx(0.1)


def test_the_average_follows_the_weights_and_can_be_swapped_in() -> None:
    net = nn.BatchNorm1d(2)
    average = WeightAverage(net, 0.5)
    decays = [0.1, 2 / 11, 0.25]
    expected = net.weight.detach().clone()
    for i, decay in enumerate(decays):
        with torch.no_grad():
            net.weight.fill_(i + 2.0)
        average.update()
        expected = expected * decay + (i + 2.0) * (1 - decay)
    torch.testing.assert_close(average.weights()["weight"], expected)
    assert set(average.weights()) == set(net.state_dict())
    trained = copy.deepcopy(net.state_dict())
    average.swap()
    torch.testing.assert_close(net.weight.detach(), expected)
    average.swap()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in trained.items())
    assert math.isclose(float(average.weights()["weight"][0]), float(expected[0]), rel_tol=1e-6)
