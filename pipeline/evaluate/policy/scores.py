"""Success rates and how sure they are."""

from math import sqrt

Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def wilson95(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (E. B. Wilson, 1927), whose end is exactly 0 without any success and exactly 1
    without any failure. ValueError without a trial.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and a trial at least, got {successes} of {trials}")
    rate, square = successes / trials, Z95 * Z95 / trials
    centre = (rate + square / 2) / (1 + square)
    half = Z95 / (1 + square) * sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high
