import numpy as np
import pytest

from pipeline.evaluate.usage import CodeUsage, perplexity


def test_usage_counts_every_place_and_the_codebook_they_share() -> None:
    usage = CodeUsage.of(np.array([[0, 3], [0, 1], [2, 3]]), 4)
    np.testing.assert_array_equal(usage.counts, [[2, 0, 1, 0], [0, 1, 0, 2]])
    assert usage.used == 4
    np.testing.assert_array_equal(usage.total, [2, 1, 1, 2])
    assert usage.most_used(2) == [(0, 0), (1, 3)]
    assert usage.most_used(99) == [(0, 0), (1, 3), (1, 1), (0, 2)]
    # code 1 is used at both places, and listed once
    assert CodeUsage.of(np.array([[1, 1], [1, 0], [0, 1]]), 2).most_used(9) == [(0, 1), (0, 0)]


def test_perplexity_is_the_number_of_codes_used_equally_often() -> None:
    assert perplexity(np.array([5, 5, 0, 5])) == pytest.approx(3)
    assert perplexity(np.array([0, 7])) == pytest.approx(1)
    usage = CodeUsage.of(np.array([[0, 1], [0, 2], [0, 1], [0, 2]]), 256)
    assert usage.perplexity_by_place() == pytest.approx((1, 2))
    assert usage.perplexity == pytest.approx(np.exp(0.5 * np.log(2) + 0.5 * np.log(4)))
