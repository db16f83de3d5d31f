"""The errors that VGGT tiny is judged by, on predictions whose errors are known."""

import math

import film_factory
import torch

from pipeline.train.frozen.depth_error import mean_error, window_errors
from pipeline.train.frozen.windows import window


def test_exact_predictions_have_no_error_at_any_scale() -> None:
    truth = window(film_factory.wall_film(), range(4))
    pose = truth.pose.clone()
    pose[..., :3] *= 3.0
    error = mean_error([window_errors(3.0 * truth.depth, pose, truth)])
    assert error.abs_rel < 1e-6
    assert error.delta == 1.0
    assert error.rotation < 1e-3
    assert error.translation < 1e-3
    assert error.view < 1e-5


def test_errors_are_in_their_units() -> None:
    truth = window(film_factory.wall_film(), range(2))
    depth = truth.depth.clone()
    half = depth.flatten()
    half[half > half.median()] *= 1.5  # the half above the median: the scale stays
    pose = truth.pose.clone()
    turn = math.radians(2.0)
    pose[0, 1, 3:7] = torch.tensor([math.sin(turn / 2), 0.0, 0.0, math.cos(turn / 2)])
    truth.pose[0, 1, 3:7] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    pose[0, 1, 0] += 0.02 / float(truth.scale)  # 2 cm
    pose[..., 7:] += math.radians(1.0)
    error = mean_error([window_errors(depth, pose, truth)])
    assert abs(error.abs_rel - 0.25) < 1e-3
    assert abs(error.delta - 0.5) < 1e-3
    assert abs(error.rotation - 2.0) < 1e-3
    assert abs(error.translation - 2.0) < 1e-2
    assert abs(error.view - 1.0) < 1e-3


def test_a_window_of_one_frame_has_no_motion_to_be_wrong_about() -> None:
    truth = window(film_factory.wall_film(), [3])
    pose = truth.pose + 0.3
    error = mean_error([window_errors(truth.depth, pose, truth)])
    assert error.rotation == 0.0
    assert error.translation == 0.0
