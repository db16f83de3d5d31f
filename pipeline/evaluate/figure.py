"""Codes against motion as a picture: for the most used codes, pairs of frames that share them, side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.evaluate.usage import CodeUsage

CODES, PAIRS = 8, 4
"""Rows of the picture, and pairs a row."""

_INK, _FAINT, _BAR = "#16181d", "#8a909b", "#3a7c9d"
_BOUND = 2.0
"""Standard deviations at which the axis of the mean actions ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedCode:
    """A code at a place, some of the pairs that have it, and what was done in all of those.

    Attributes:
        place, code: which of the codes of a pair, and its value.
        count: held-out pairs that have it there.
        rows: i8 [≤4], those that are shown, of different clips as far as there are.
        action: f8 [A], mean action of all that have it, in standard deviations from the mean of all pairs.
    """

    place: int
    code: int
    count: int
    rows: Array
    action: Array


def choose_shared(codes: Array, clip: Array, action: Array, size: int, *, count: int = CODES) -> list[SharedCode]:
    """The most used codes of n pairs, each where it is used most, and a few pairs of it spread over the clips.

    Args:
        codes: i8 [n,K]. clip: [n], the clip of each pair.
        action: f8 [n,A], dimensions that vary.
        size: codes of the codebook.
        count: how many codes.
    """
    unit = (action - action.mean(0)) / action.std(0)
    shared = []
    for place, code in CodeUsage.of(codes, size).most_used(count):
        rows = np.flatnonzero(codes[:, place] == code)
        _, firsts = np.unique(clip[rows], return_index=True)
        candidates = rows[firsts] if len(firsts) >= PAIRS else rows
        chosen = candidates[np.linspace(0, len(candidates) - 1, min(PAIRS, len(candidates))).round().astype(int)]
        shared.append(SharedCode(place=place, code=code, count=len(rows), rows=chosen, action=unit[rows].mean(0)))
    return shared


def draw_shared(
    shared: Sequence[SharedCode], images: Sequence[Sequence[tuple[Array, Array]]], names: Sequence[str]
) -> bytes:
    """The picture as PNG, a row a code: its mean action, then pairs, earlier frame left of the later one.

    Args:
        shared: the codes. images: for each of them its pairs, u1 [W,W,3] each frame.
        names: of the dimensions of `SharedCode.action`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: its registry of figures and its choice of a display are state of the process
    figure = Figure(figsize=(13.2, 1.46 * len(shared) + 0.5), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    top = 1 - 0.42 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(shared), 2, width_ratios=(1, 4.2), left=0.055, right=0.998, top=top, bottom=0.02, wspace=0.03, hspace=0.06
    )
    for row, (item, pairs) in enumerate(zip(shared, images, strict=True)):
        _draw_action(figure.add_subplot(grid[row, 0]), item, names, last=row == len(shared) - 1)
        strip = _strip(pairs)
        axes = figure.add_subplot(grid[row, 1])
        axes.imshow(strip)
        axes.set_axis_off()
        if row == 0:
            axes.set_title("pairs of held-out frames, the first left of the later one", fontsize=9, color=_FAINT, pad=4)
    above = 1 - 0.2 / figure.get_figheight()
    figure.text(0.055, above, "mean action, in standard deviations", fontsize=9, color=_FAINT)
    buffer = io.BytesIO()
    canvas.print_figure(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _strip(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """A row of `PAIRS` pairs u1 [W, ..., 3], white where there are fewer: one picture draws faster than eight."""
    side = pairs[0][0].shape[0]
    near, far = side // 40, side // 8
    wide = 2 * side + near + far
    strip = np.full((side, PAIRS * wide - far, 3), 255, dtype=np.uint8)
    for at, (first, later) in enumerate(pairs):
        strip[:, at * wide : at * wide + side] = first
        strip[:, at * wide + side + near : (at + 1) * wide - far] = later
    return strip


def _draw_action(axes: Any, item: SharedCode, names: Sequence[str], *, last: bool) -> None:
    at = np.arange(len(names))
    axes.barh(at, np.clip(item.action, -_BOUND, _BOUND), height=0.68, color=_BAR)
    axes.plot([0, 0], [-0.5, len(names) - 0.5], color=_FAINT, linewidth=0.8)
    axes.set(xlim=(-_BOUND, _BOUND), ylim=(len(names) - 0.4, -1.7), yticks=at)
    axes.set_yticklabels(names, fontsize=8, color=_INK)
    axes.text(
        -_BOUND, -0.85, f"code {item.code} at place {item.place + 1}, {item.count:,} pairs", fontsize=9, color=_INK,
        fontweight="bold",
    )  # fmt: skip
    axes.tick_params(axis="both", length=0, labelsize=8, colors=_FAINT)
    axes.set_xticks([-_BOUND, 0, _BOUND] if last else [])
    for spine in axes.spines.values():
        spine.set_visible(False)
