"""Pairs of frames of one clip, a fixed time apart."""

from dataclasses import dataclass

import numpy as np

from data_specs.arrays import Array

_EPSILON = 1e-6
"""Seconds by which timestamps of one video may miss a common step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairIndex:
    """Flat indices of the frames of each pair: `first` and `second` i8 [n], with `clip` i8 [n] that holds both.

    `offset` is the time asked for, `apart` f8 [n] the time between the two frames, `without` the number of clips
    that have no pair and were left out.
    """

    first: Array
    second: Array
    clip: Array
    apart: Array
    offset: float
    without: int

    def __len__(self) -> int:
        return len(self.first)


def find_pairs(
    time: Array, start: Array, offset: float, tolerance: float | None = None, *, jitter: float = 0.0, seed: int = 0
) -> PairIndex:
    """For every frame the later frame of its clip nearest to `offset` seconds after it, where there is one.

    A frame whose partner would lie past the end of its clip has no pair: nothing is clamped. With `jitter` each frame
    asks for an offset of its own, drawn evenly from offset - jitter to offset + jitter; another seed draws others.

    Args:
        time: f8 [F], times of all frames, increasing within a clip.
        start: i8 [n+1], frames of clip i are start[i]:start[i+1].
        offset: seconds, above 0.
        tolerance: how far from the offset asked for a pair may be; half of the clip's mean frame spacing by default.
        jitter: seconds, less than `offset`.
        seed: of the offsets drawn: the same frames, offset, jitter and seed give the same pairs.

    Raises:
        ValueError: no clip has such a pair, or the numbers make no sense.
    """
    if not (np.isfinite(offset) and offset > 0):
        raise ValueError(f"pairs {offset} s apart make no sense: expected a number of seconds above 0")
    if tolerance is not None and not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"a tolerance of {tolerance} s makes no sense: expected a number of seconds, 0 or more")
    if not (np.isfinite(jitter) and 0 <= jitter < offset):
        raise ValueError(
            f"a jitter of {jitter} s makes no sense for pairs {offset} s apart: expected 0 or more, under the offset"
        )
    asked = offset + jitter * np.random.default_rng(seed).uniform(-1.0, 1.0, len(time))
    clips = len(start) - 1
    length = np.diff(start)
    clip = np.repeat(np.arange(clips), length)
    begin, end = start[:-1][clip], start[1:][clip]
    # One search over all clips: each is shifted to a stretch of time of its own.
    since = time - time[begin]
    span = float(since.max(initial=0.0)) + offset + jitter + 1.0
    target = since + asked
    found = np.searchsorted(since + clip * span, target + clip * span)
    first = np.arange(len(time))
    # only later frames are candidates; the last frame of a clip gets itself, and is dropped below
    low, high = (np.minimum(np.maximum(at, first + 1), end - 1) for at in (found - 1, found))
    nearer_low = np.abs(since[low] - target) <= np.abs(since[high] - target)
    second = np.where(nearer_low, low, high)
    mean_step = since[start[1:] - 1] / np.maximum(length - 1, 1)
    limit = (mean_step / 2)[clip] if tolerance is None else np.full(len(time), tolerance)
    apart = since[second] - since
    keep = (second > first) & (np.abs(apart - asked) <= limit + _EPSILON)
    if not keep.any():
        longest = float(since.max(initial=0.0))
        raise ValueError(
            f"no two frames of a clip are {offset:g} s apart: the longest of {clips} clips spans {longest:g} s; ask "
            "for a smaller offset or a greater tolerance"
        )
    return PairIndex(
        first=first[keep],
        second=second[keep],
        clip=clip[keep],
        apart=apart[keep],
        offset=offset,
        without=clips - len(np.unique(clip[keep])),
    )
