import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RequestError
from pipeline.evaluate.policy.execution import Execution
from pipeline.evaluate.policy.films import encode_mp4
from pipeline.evaluate.policy.scores import wilson95
from pipeline.evaluate.policy.trials import plan_trials


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # R. G. Newcombe (1998), table I, method 3: the score method without continuity correction
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)):
        assert wilson95(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_intervals_hold_the_rate_and_end_at_the_extremes(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson95(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert (low == 0) == (successes == 0)
    assert (high == 1) == (successes == trials)


def test_wilson_intervals_need_trials() -> None:
    for successes, trials in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
            wilson95(successes, trials)


def test_films_are_mp4_of_every_picture() -> None:
    frames = [np.full((33, 47, 3), 25 * k, dtype=np.uint8) for k in range(10)]
    with av.open(io.BytesIO(encode_mp4(frames, 10.0))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 10
    assert decoded[0].shape == (34, 48, 3)
    for k, picture in enumerate(decoded):
        assert abs(float(picture.mean()) - 25 * k) < 6


def test_a_chunk_is_done_as_far_as_asked_and_an_ensemble_averages() -> None:
    chunks = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    executor = Execution.choose("chunk", 3, 4).start()
    for chunk in chunks:
        np.testing.assert_array_equal(executor.actions(chunk), chunk[:3])
    executor = Execution.choose("ensemble", None, 4).start()
    done = [executor.actions(chunk) for chunk in chunks]
    assert [actions.shape for actions in done] == [(1, 2)] * 3
    np.testing.assert_allclose(done[0][0], chunks[0, 0])
    weights = np.exp(-0.01 * np.arange(3))  # the oldest first
    told = np.stack([chunks[0, 2], chunks[1, 1], chunks[2, 0]])
    np.testing.assert_allclose(done[2][0], (weights[:, None] * told).sum(0) / weights.sum(), rtol=1e-6)


def test_an_execution_that_cannot_be_is_refused() -> None:
    assert Execution.choose("chunk", None, 50).steps == 10
    assert Execution.choose("chunk", None, 4).steps == 4
    for kind, steps, said in (
        ("chunk", 5, "4 actions at a time; expected 1 to 4"),
        ("ensemble", 2, "leave out --execute-steps 2"),
        ("ensembl", None, "Did you mean 'ensemble'"),
    ):
        with pytest.raises(RequestError, match=said):
            Execution.choose(kind, steps, 4)


def test_trials_go_task_by_task_and_the_first_are_filmed() -> None:
    trials = plan_trials(("a", "b"), 3, seed=5, films=1)
    assert [(t.number, t.task, t.index, t.film) for t in trials] == [
        (0, "a", 0, True),
        (1, "a", 1, False),
        (2, "a", 2, False),
        (3, "b", 0, True),
        (4, "b", 1, False),
        (5, "b", 2, False),
    ]
    assert {t.seed for t in trials} == {5}
