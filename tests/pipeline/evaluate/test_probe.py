import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.evaluate.information import mutual_information
from pipeline.evaluate.probe import ProbeResult, one_hot, probe
from pipeline.evaluate.score import ratio, score
from pipeline.ridge import fit_ridge, group_folds

Floats = NDArray[np.float64]
PER_CLIP = 10
NAMES = ("x", "y", "roll", "gripper")


def actions(clips: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Actions [n,4] of which the third never moves and the fourth is -2, 0 or 2, and their clips."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(clips * PER_CLIP, 4)) + 3
    y[:, 2] = 0
    y[:, 3] = rng.integers(3, size=len(y)) * 2 - 2
    return y, np.repeat(np.arange(clips), PER_CLIP) + 1000 * seed


def probed(
    features: str, noise: float = 0.1, *, clips: int = 40, mlp: bool = False, standardise: bool = True
) -> ProbeResult:
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(4, 24))
    sides = []
    for seed in (1, 2):
        y, clip = actions(clips, seed)
        x = {
            "linear": y @ mix,
            "folded": np.concatenate([np.abs(y[:, :2] - 3), np.sign(y[:, :2] - 3), y[:, 3:]], axis=1),
            "nothing": rng.normal(size=(len(y), 24)),
        }[features]
        sides.append((x + noise * rng.normal(size=x.shape), y, clip))
    (xt, yt, ct), (xv, yv, cv) = sides
    return probe(xt, yt, xv, yv, clip_train=ct, clip_val=cv, names=NAMES, mlp=mlp)


def test_features_that_hold_the_action_score_near_0_and_noise_near_1() -> None:
    good, bad = probed("linear"), probed("nothing")
    assert good.linear.nmse < 0.02
    assert good.linear.ci95[0] <= good.linear.nmse <= good.linear.ci95[1] < 0.03
    assert 0.97 < bad.linear.nmse < 1.1
    assert min(good.mutual_information.values()) > 0.9 > 0.2 > max(bad.mutual_information.values())


def test_a_dimension_that_never_moves_is_named_and_counts_nowhere() -> None:
    result = probed("linear")
    assert result.left_out == ("roll",)
    assert list(result.linear.by_dimension) == ["x", "y", "gripper"]
    assert result.linear.nmse == pytest.approx(np.mean(list(result.linear.by_dimension.values())))


def test_the_perceptron_finds_what_a_line_cannot_and_repeats_itself() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again = probed("folded", 0.02, clips=30, mlp=True), probed("folded", 0.02, clips=30, mlp=True)
    assert first.mlp is not None
    # |y| and its sign give y only by their product
    assert first.mlp.nmse < 0.4 * first.linear.nmse
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)


def test_ridge_is_the_closed_form_with_the_penalty_that_was_chosen() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) + 1, rng.normal(size=(60, 2)) - 4
    y[:, 0] += x[:, 0]
    ridge = fit_ridge(x, y, np.arange(60) // 6)
    centred = x - x.mean(0)
    gram = centred.T @ centred
    for a in range(2):
        penalty = ridge.strength[a] * np.trace(gram) / 5
        weight = np.linalg.solve(gram + penalty * np.eye(5), centred.T @ (y[:, a] - y[:, a].mean()))
        np.testing.assert_allclose(ridge.weight[:, a], weight, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(ridge(x)[:, a].mean(), y[:, a].mean())
    assert ridge.strength[0] < ridge.strength[1]  # noise is held back, signal is not


def test_ridge_holds_whole_clips_out_when_it_chooses() -> None:
    """Features that only name the clip fit their own clip's rows, and must be recognised as saying nothing."""
    rng = np.random.default_rng(1)
    clip = np.repeat(np.arange(20), 10)
    x = np.eye(20)[clip]
    y = rng.normal(size=(20, 1))[clip] + 0.01 * rng.normal(size=(200, 1))
    by_clip = fit_ridge(x, y, clip)
    by_row = fit_ridge(x, y, np.arange(200))
    assert by_clip.strength[0] > 1000 * by_row.strength[0]


def test_folds_keep_clips_whole_and_are_even() -> None:
    clip = np.repeat(np.arange(11), np.arange(1, 12))
    fold = group_folds(clip, 5, seed=3)
    assert all(len(set(fold[clip == c])) == 1 for c in range(11))
    assert sorted(np.unique(fold[np.searchsorted(clip, np.arange(11))], return_counts=True)[1]) == [2, 2, 2, 2, 3]


def test_an_interval_over_clips_is_wider_than_one_over_pairs() -> None:
    rng = np.random.default_rng(0)
    clip = np.repeat(np.arange(20), 25)
    truth = rng.normal(size=(500, 1))
    prediction = truth + rng.normal(size=(20, 1))[clip]  # one error a clip
    clips = score(prediction, truth, np.zeros(1), clip, ("x",))
    pairs = score(prediction, truth, np.zeros(1), np.arange(500), ("x",))
    assert clips.nmse == pytest.approx(pairs.nmse)
    assert np.ptp(clips.ci95) > 2 * np.ptp(pairs.ci95)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        truth = rng.normal(size=(300, 1))
        value = score(truth + 0.5 * rng.normal(size=(300, 1)), truth, np.zeros(1), np.arange(300) // 5, ("x",))
        held += value.ci95[0] <= 0.25 <= value.ci95[1]
    assert held >= 34


def test_predicting_the_training_mean_is_1_and_a_ratio_is_of_sums() -> None:
    truth = np.random.default_rng(0).normal(size=(50, 2)) + 7
    mean = np.array([6.0, 8.0])
    result = score(np.broadcast_to(mean, truth.shape), truth, mean, np.arange(50), ("a", "b"))
    assert (result.nmse, result.ci95) == (1.0, (1.0, 1.0))
    value, (low, high) = ratio(np.array([1.0, 3.0]), np.array([4.0, 4.0]), np.array([0, 1]))
    assert value == 0.5
    assert (low, high) == (0.25, 0.75)


def test_information_of_a_gaussian_channel_is_what_the_formula_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1))
    y = 0.8 * x + 0.6 * rng.normal(size=x.shape)
    coin = rng.integers(2, size=(2000, 1)).astype(float)
    found = mutual_information(np.hstack([x, coin + 1e-3 * x]), np.hstack([y, coin]))
    assert found[0] == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.06)
    assert found[1] == pytest.approx(np.log(2), abs=0.02)
    # few pairs of a continuous dimension have few distinct values, too, and are not classes
    assert mutual_information(x[:20], y[:20])[0] == pytest.approx(0.5, abs=0.4)


def test_one_hot_has_a_column_for_each_place_and_value() -> None:
    out = one_hot(np.array([[2, 0], [1, 1]]), 3)
    np.testing.assert_array_equal(out, [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0]])


def test_a_feature_that_is_constant_while_fitting_does_not_count_later() -> None:
    y, clip = actions(10, 1)
    x = y.copy()
    x[:, 2] = 5
    later = x + 0.0
    later[:, 2] = 1e6
    result = probe(x, y, later, y, clip_train=clip, clip_val=clip + 999, mlp=False)
    assert result.linear.nmse < 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clip_val": np.repeat(np.arange(4), PER_CLIP) + 1000}, "clips are on both sides"),
        ({"x_val": np.full((40, 4), np.nan)}, "not finite"),
        ({"clip_train": np.zeros(40)}, "at least 2 clips"),
        ({"y_train": np.zeros((40, 4))}, "no dimension of the action"),
        ({"x_train": np.zeros((39, 4))}, "expected features"),
        ({"x_val": np.zeros((0, 4)), "y_val": np.zeros((0, 4)), "clip_val": np.zeros(0)}, "no pairs"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Floats], sentence: str) -> None:
    (yt, ct), (yv, cv) = actions(4, 1), actions(4, 2)
    values = {"x_train": yt, "y_train": yt, "x_val": yv, "y_val": yv, "clip_train": ct, "clip_val": cv, **change}
    with pytest.raises(ValueError, match=sentence):
        probe(**values)  # type: ignore[arg-type]
