"""The plain head's errors."""

import pytest
import torch

from stages.heads.base import HeadSizes
from stages.heads.chunk import ChunkConfig, ChunkHead

SIZES = HeadSizes(dim=8, queries=1, horizon=1, state=0, action=1)


def loss(error: str, off: float, delta: float = 0.5) -> float:
    """Of a prediction that is `off` by that much."""
    head = ChunkHead(ChunkConfig(hidden=8, error=error, delta=delta), SIZES)  # type: ignore[arg-type]
    features = torch.randn(1, 1, 8)
    with torch.no_grad():
        wanted = head.act(features) + off
        return float(head.loss(features, wanted, torch.zeros(1, 1, dtype=torch.bool))[0])


@pytest.mark.parametrize(
    ("error", "small", "large"), [("l1", 0.2, 3.0), ("l2", 0.04, 9.0), ("huber", 0.5 * 0.04 / 0.5, 3.0 - 0.25)]
)
def test_each_error_is_what_it_says(error: str, small: float, large: float) -> None:
    assert loss(error, 0.2) == pytest.approx(small, rel=1e-4)
    assert loss(error, 3.0) == pytest.approx(large, rel=1e-4)


def learned(error: str) -> float:
    """How far a head that began at 0 comes to -1, +1 where features say so, when 4 of 5 labels are 0."""
    torch.manual_seed(0)
    features = torch.randn(400, 1, 8)
    rare = torch.arange(400) % 5 == 0
    features[:, :, 0] = torch.where(rare, features[:, 0, 1].sign(), torch.randn(400) * 0.5)[:, None]
    actions = torch.where(rare, features[:, 0, 1].sign(), 0.0)[:, None, None]
    head = torch.nn.Linear(8, 1, bias=False)
    torch.nn.init.zeros_(head.weight)
    plain = ChunkHead(ChunkConfig(hidden=8, error=error), SIZES)  # type: ignore[arg-type]
    plain.mlp = head  # type: ignore[assignment]
    optimiser = torch.optim.SGD(head.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        plain.loss(features, actions, torch.zeros(400, 1, dtype=torch.bool))[0].backward()
        optimiser.step()
    with torch.no_grad():
        return float((plain.act(features) * actions)[rare].mean())


def test_what_seldom_happens_is_learned_by_the_rounded_error_and_not_by_l1() -> None:
    assert learned("huber") > 3 * abs(learned("l1"))


def test_an_unknown_error_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no error 'l3'"):
        ChunkHead(ChunkConfig(error="l3"), SIZES)  # type: ignore[arg-type]


def test_a_delta_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk\.delta is 0\.0, expected above 0"):
        ChunkHead(ChunkConfig(error="huber", delta=0.0), SIZES)
