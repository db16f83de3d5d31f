"""Charts of the page as inline SVG and as bar lists: no script draws them, so they are there without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from data_specs.arrays import Array

WIDTH, HEIGHT, FOOT = 360, 150, 22


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """`counts` [n] between `edges` [n+1]."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Array, bins: int = 36) -> "Histogram":
        """The histogram of the finite ones of `values`; whole numbers get bins of a whole width."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls(edges=(), counts=())
        low, high = float(values.min()), float(values.max())
        if np.issubdtype(values.dtype, np.integer):
            width = max(1, int(np.ceil((high - low + 1) / bins)))
            edges = np.arange(low, high + 1 + width, width, dtype=np.float64)
        elif high <= low:
            edges = np.array([low, low + max(abs(low), 1.0) * 1e-3])
        else:
            edges = np.linspace(low, high, bins + 1)
        counts, _ = np.histogram(values, bins=edges)
        return cls(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def histogram_svg(histogram: Histogram, *, name: str, unit: str, mark: float | None = None) -> str:
    """Bars with three ticks; `mark` draws a dashed line (the median). `name` and `unit` are read out and hovered."""
    if not histogram.counts or max(histogram.counts) == 0:
        return "<p>nothing to count</p>"
    edges, counts = histogram.edges, histogram.counts
    low, high, top = edges[0], edges[-1], max(counts)
    if len(counts) == 1:
        return f'<p class="same">{escape(number(low))} <small>everywhere</small></p>'

    def x(value: float) -> float:
        return (value - low) / (high - low) * WIDTH

    floor = HEIGHT - FOOT
    bars = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if not count:
            continue
        tall = max(count / top * (floor - 16), 1.5)
        wide = max(x(right) - x(left) - 1, 0.8)
        hover = f"{number(left)} to {number(right)} {unit}: {count:,}"
        bars.append(
            f'<rect class="bar" x="{x(left) + 0.5:.2f}" y="{floor - tall:.2f}" width="{wide:.2f}" height="{tall:.2f}" '
            f'rx="1.2"><title>{escape(hover)}</title></rect>'
        )
    ticks = "".join(
        f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(number(value))}</text>'
        for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end"))
    )
    line = ""
    if mark is not None and low <= mark <= high:
        anchor = "end" if x(mark) > WIDTH * 0.7 else "start"
        shift = -5 if anchor == "end" else 5
        line = (
            f'<line class="mark" x1="{x(mark):.2f}" x2="{x(mark):.2f}" y1="2" y2="{floor}"/>'
            f'<text class="tick strong" x="{x(mark) + shift:.1f}" y="11" text-anchor="{anchor}">'
            f"median {escape(number(mark))}</text>"
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"Histogram of {name}")}">'
        f'<line class="rule" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>{"".join(bars)}{line}{ticks}</svg>'
    )


def bar_list(amounts: Mapping[str, float]) -> str:
    """Names with bars in proportion, the greatest first, each with its amount in bytes and its share.

    What takes less than a hundredth of the whole is added up in one last row.
    """
    total = sum(amounts.values())
    top = max(amounts.values(), default=0)
    large = {name: amount for name, amount in amounts.items() if amount >= total / 100}
    ordered = sorted(large.items(), key=lambda item: (-item[1], item[0]))
    if len(large) < len(amounts):
        ordered.append((f"{len(amounts) - len(large)} smaller arrays", total - sum(large.values())))
    rows = []
    for name, amount in ordered:
        share = amount / total if total else 0
        rows.append(
            f"<code>{escape(name)}</code>"
            f'<i style="width:{amount / top * 100 if top else 0:.2f}%"></i>'
            f'<span class="amount">{escape(size(amount))} <span class="quiet">{share:.0%}</span></span>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def ramp_css(table: Array, stops: int = 12) -> str:
    """A colour map u1 [256,3] as a CSS gradient from low to high."""
    at = np.linspace(0, len(table) - 1, stops).round().astype(int)
    return f"linear-gradient(90deg,{','.join('#' + bytes(table[i]).hex() for i in at)})"


def number(value: float) -> str:
    """A number as a person writes it: three digits, thousands separated, no exponent where none is needed."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if abs(value) >= 1000 and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(amount: float) -> str:
    """Bytes in decimal units: 812 B, 83.4 kB, 8.39 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `head` is text, the cells of `rows` are HTML that is already escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
