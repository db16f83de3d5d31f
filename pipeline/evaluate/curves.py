"""Curves of a run as inline SVG.

Shape legend: n points of a curve.
"""

from collections.abc import Mapping, Sequence
from html import escape

from pipeline.page.charts import number

WIDTH, HEIGHT, LEFT, FOOT, HEAD = 380, 170, 40, 22, 10
MOST = 240
"""Points drawn of a curve; longer ones are averaged."""

Points = Sequence[tuple[float, float]]


def curves_svg(curves: Mapping[str, Points], *, name: str, from_zero: bool = False) -> str:
    """Lines over the training step with a legend, or a sentence when there is nothing to draw.

    Args:
        curves: points (step, value) by the name of the line; the first two get colours of their own.
        name: what is drawn, read out by screen readers.
        from_zero: start the value axis at 0.
    """
    thinned = {line: _thin([p for p in points if p[1] is not None]) for line, points in curves.items()}
    drawn = {line: points for line, points in thinned.items() if points}
    if not drawn:
        return "<p>nothing recorded</p>"
    steps = [x for points in drawn.values() for x, _ in points]
    values = [y for points in drawn.values() for _, y in points]
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    if high <= low:
        low, high = low - 0.5 * max(abs(low), 1e-9), high + 0.5 * max(abs(high), 1e-9)
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(x: float, y: float) -> str:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT)
        return f"{across:.1f},{HEAD + (high - y) / (high - low) * (HEIGHT - FOOT - HEAD):.1f}"

    lines = "".join(
        f'<polyline class="curve c{at % 4}" points="{" ".join(place(x, y) for x, y in points)}">'
        f"<title>{escape(line)}</title></polyline>"
        if len(points) > 1
        else f'<circle class="dot c{at % 4}" r="3" cx="{place(*points[0]).split(",")[0]}" '
        f'cy="{place(*points[0]).split(",")[1]}"><title>{escape(line)}</title></circle>'
        for at, (line, points) in enumerate(drawn.items())
    )
    floor = HEIGHT - FOOT
    ticks = "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(number(value))}</text>'
        for y, value in ((HEAD, high), ((HEAD + floor) / 2, (low + high) / 2), (floor, low))
    )
    ends = "".join(
        f'<text class="tick" x="{x}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, anchor, text in ((LEFT, "start", number(first)), (WIDTH, "end", f"step {number(last)}"))
    )
    keys = "".join(f'<span class="key c{at % 4}">{escape(line)}</span>' for at, line in enumerate(drawn))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{ticks}{lines}{ends}</svg>'
        f'<p class="keys">{keys}</p>'
    )


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most `MOST` points, each the mean of as many neighbours."""
    group = -(-len(points) // MOST) if points else 1
    parts = [points[at : at + group] for at in range(0, len(points), group)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]
