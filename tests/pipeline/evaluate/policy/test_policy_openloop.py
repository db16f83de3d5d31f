import numpy as np
import pytest
import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from pipeline.evaluate.policy.openloop import OpenLoop, dimension_names, measure
from stages.draw import Draw


class Off:
    """Says what was done, plus `by` [H,A], plus one more step."""

    def __init__(self, by: Tensor) -> None:
        self.by = by

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        assert draw is not None and batch.action is not None
        return torch.cat([batch.action + self.by, batch.action[:, :1]], dim=1)


def batches() -> list[PolicyBatch]:
    return [PolicyBatch.example(size, points=64, channels=8, horizon=4, seed=size) for size in (3, 2)]


def test_errors_are_counted_where_there_are_steps() -> None:
    by = torch.arange(28).reshape(4, 7).float() / 10
    found = measure(Off(by), batches(), mean=[0.5] * 7)
    real = torch.cat([~batch.is_pad for batch in batches()])  # type: ignore[operator]
    truth = torch.cat([batch.action for batch in batches()])  # type: ignore[misc]
    np.testing.assert_array_equal(found["count"], real.sum(0))
    seen = found["count"] > 0
    np.testing.assert_allclose(found["absolute"][seen], by[seen], rtol=1e-5)
    np.testing.assert_allclose(found["squared"][seen], by[seen] ** 2, rtol=1e-5)
    expected = (truth[:, 0] - 0.5)[real[:, 0]].abs().mean(0)
    np.testing.assert_allclose(found["constant"][0], expected, rtol=1e-5)


def test_what_lies_past_the_end_of_an_episode_does_not_count() -> None:
    def wrecked(batch: PolicyBatch) -> PolicyBatch:
        assert batch.action is not None and batch.is_pad is not None
        return batch.__class__(
            frames=batch.frames, action=batch.action.masked_fill(batch.is_pad[..., None], 1e6), is_pad=batch.is_pad
        )

    policy = Off(torch.ones(4, 7))
    clean, dirty = (measure(policy, found, mean=[0.0] * 7) for found in (batches(), map(wrecked, batches())))
    for name in clean:
        np.testing.assert_allclose(clean[name], dirty[name], rtol=1e-6)


def test_errors_are_shares_of_the_spread_of_what_varies() -> None:
    found = OpenLoop(
        policy={"name": "run"},
        store={"url": "store"},
        names=dimension_names(2),
        frames=5,
        clips=2,
        count=np.array([4.0, 1.0]),
        absolute=np.array([[1.0, 3.0], [2.0, 3.0]]),
        squared=np.array([[1.0, 9.0], [4.0, 9.0]]),
        spread=np.array([2.0, 0.0]),
        constant=np.array([[2.0, 1.0], [2.0, 1.0]]),
    )
    values = found.as_json()["open_loop"]
    assert values["normalised_error_by_dimension"] == {"0": pytest.approx((4 * 0.5 + 1.0) / 5)}
    assert values["normalised_error"] == pytest.approx(0.6)
    assert values["normalised_error_of_the_mean"] == pytest.approx(1.0)
    assert values["normalised_error_by_step"] == pytest.approx([0.5, 1.0])
    assert values["absolute_error_by_dimension"] == {"0": pytest.approx(1.2), "1": pytest.approx(3.0)}
    assert values["rms_error_by_dimension"]["0"] == pytest.approx(np.sqrt((4 * 1 + 4) / 5))


def test_dimensions_have_names() -> None:
    assert dimension_names(7)[-1] == "gripper"
    assert dimension_names(14)[7] == "right joint 1"
    assert dimension_names(3) == ("0", "1", "2")
    with pytest.raises(ValueError, match="no moments"):
        measure(Off(torch.zeros(4, 7)), [], mean=[0.0] * 7)
