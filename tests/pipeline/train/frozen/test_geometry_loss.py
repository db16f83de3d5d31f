"""The losses of VGGT: least for exact predictions, blind where nothing is known, honest about confidence."""

import pytest
import torch

from pipeline.train.frozen.geometry_loss import ALPHA, camera_loss, depth_loss


@pytest.fixture
def truth() -> torch.Tensor:
    torch.manual_seed(0)
    depth = 1 + torch.rand(1, 2, 8, 8)
    depth[0, 0, :3] = 0.0  # no reading
    return depth


def test_exact_depth_costs_least(truth: torch.Tensor) -> None:
    confidence = torch.full_like(truth, 3.0)
    exact = depth_loss(truth, confidence, truth)
    torch.testing.assert_close(exact, torch.tensor(-ALPHA * 3.0).log1p() * 0 - ALPHA * torch.tensor(3.0).log())
    for noise in torch.randn(5, *truth.shape):
        for size in (0.3, 0.01):
            assert depth_loss(truth + size * noise, confidence, truth) > exact


def test_pixels_without_depth_do_not_count(truth: torch.Tensor) -> None:
    confidence = torch.full_like(truth, 2.0)
    predicted = truth + 0.1
    other = torch.where(truth > 0, predicted, 7.0)
    sure = torch.where(truth > 0, confidence, 90.0)
    torch.testing.assert_close(depth_loss(other, sure, truth), depth_loss(predicted, confidence, truth))


def test_the_best_confidence_is_alpha_over_the_error() -> None:
    truth = torch.ones(1, 1, 4, 4)
    error = 0.01  # even: no gradient term

    def cost(confidence: float) -> float:
        return float(depth_loss(truth + error, torch.full_like(truth, confidence), truth))

    best = ALPHA / error
    assert cost(best) < cost(0.9 * best)
    assert cost(best) < cost(1.1 * best)


def test_a_step_in_the_depth_costs_more_than_an_even_error() -> None:
    truth = torch.ones(1, 1, 8, 8)
    ripple = 0.1 * torch.ones(8, 8) * (-1.0) ** torch.arange(8)
    confidence = torch.ones_like(truth)
    assert depth_loss(truth + ripple, confidence, truth) > 2 * depth_loss(truth + 0.1, confidence, truth)


def test_exact_cameras_cost_nothing_and_each_part_counts() -> None:
    truth = torch.randn(2, 3, 9)
    assert float(camera_loss(truth, truth)) == 0.0
    for part in (0, 4, 8):
        moved = truth.clone()
        moved[0, 0, part] += 0.2
        assert float(camera_loss(moved, truth)) > 0
