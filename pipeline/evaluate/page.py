"""The page of a run as one self-contained HTML file: the probe, codes against motion, curves, code usage.

All that comes from a run or a store is escaped here.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from pipeline.evaluate.curves import curves_svg
from pipeline.evaluate.judge import SOURCES, Judgement
from pipeline.evaluate.score import Score
from pipeline.inspect_html import fill
from pipeline.page.charts import number, table
from pipeline.page.sections import plural

_SOURCE = {
    "latent": "quantised latents",
    "code": "codes, one-hot",
    "continuous": "before quantisation",
    "baseline": "pooled frozen features",
}
_BAR_WIDTH, _BAR_HEIGHT = 1040, 130

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PageContent:
    """What the page shows: the judgement, lines of metrics of training and validation, the picture as PNG."""

    judgement: Judgement
    train: Lines
    val: Lines
    picture: bytes


def render_page(content: PageContent) -> str:
    """The page as text."""
    judgement = content.judgement
    return fill(
        _asset("pipeline.evaluate", "page.html"),
        {
            "title": escape(f"{judgement.run['name']} · latent actions"),
            "style": _asset("pipeline.page", "style.css"),
            "run_style": _asset("pipeline.evaluate", "page.css"),
            "header": _header(judgement),
            "probe": _probe(judgement),
            "motion": _motion(content.picture),
            "curves": _curves(content.train, content.val),
            "usage": _usage(judgement),
            "origin": _origin(judgement),
            "footer": "<p>Written by <code>cla eval probe --html</code>. This page loads nothing from any network.</p>",
        },
    )


def _header(judgement: Judgement) -> str:
    run = judgement.run
    sentence = (
        f"Recipe {escape(run['recipe'])} after {run['step']:,} steps, judged on "
        f"{plural(judgement.pairs_held_out, 'pair')} of {plural(judgement.clips_held_out, 'clip')} that it was not "
        f"trained on, {judgement.offset:g} s apart"
    )
    latent, mlp = judgement.linear("latent"), judgement.mlp("latent")
    figures = [
        ("linear probe", _digits(latent.nmse), f"NMSE of the latents, {_range(latent.ci95)}"),
        ("small MLP", _digits(mlp.nmse), f"NMSE of the latents, {_range(mlp.ci95)}"),
        ("frozen features", _digits(judgement.linear("baseline").nmse), "linear, pooled, as a baseline"),
        ("codes used", f"{judgement.usage.used}", f"of {len(judgement.usage.total)}, over all pairs"),
        ("perplexity", number(round(judgement.usage.perplexity, 1)), "of the codebook"),
        ("decoder", _digits(judgement.decoder_vs_copy), "error as a share of copying the first frame"),
    ]
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}</dd><dd class='note'>{escape(note)}</dd></div>"
        for name, value, note in figures
    )
    return (
        f'<p class="eyebrow">Latent actions</p>\n<h1>{escape(run["name"])}</h1>\n<p class="made">{sentence}.</p>\n'
        f'<dl class="figures">{cells}</dl>\n<p class="digest">weights <code>{escape(run["weights_sha256"])}</code></p>'
    )


def _probe(judgement: Judgement) -> str:
    rows = []
    for name in SOURCES:
        nats = judgement.probes[name].mutual_information.values()
        rows.append(
            [
                escape(_SOURCE[name]),
                _with_range(judgement.linear(name)),
                _with_range(judgement.mlp(name)),
                f"{sum(nats) / len(nats):.2f} nats",
            ]
        )
    best = table(["what is probed", "linear probe, NMSE", "small MLP, NMSE", "mutual information"], rows)
    by_dimension = [
        [
            escape(dimension),
            *(_digits(judgement.linear(name).by_dimension[dimension]) for name in SOURCES),
            _digits(judgement.mlp("latent").by_dimension[dimension]),
            f"{judgement.probes['latent'].mutual_information[dimension]:.2f} nats",
        ]
        for dimension in judgement.dimensions
    ]
    heads = ["dimension", *(f"{_SOURCE[name]}, linear" for name in SOURCES), "latents, MLP", "latents, information"]
    still = (
        f" {', '.join(map(escape, judgement.left_out))} never {'moves' if len(judgement.left_out) == 1 else 'move'} "
        "and are left out." if judgement.left_out else ""
    )  # fmt: skip
    return (
        '<section aria-labelledby="probe-title"><h2 id="probe-title">What the latents say of the true action</h2>'
        '<p class="lead">Normalised mean squared error of a probe from each pair to the action accumulated over it, '
        f"mean over dimensions. 1.0 is predicting the mean; less is better.{still}</p>"
        f'{best}<div class="gap"></div>{table(heads, by_dimension)}'
        '<p class="small">In brackets, 95 % bootstrap intervals over the held-out clips. Mutual information is '
        "estimated by nearest neighbours between each dimension and the linear probe's prediction of it, which bounds "
        "what is carried from below.</p></section>"
    )


def _motion(picture: bytes) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return (
        '<section aria-labelledby="motion-title"><h2 id="motion-title">Codes against motion</h2>'
        '<p class="lead">The most used codes. Held-out pairs in a row share one: the scenes differ, so what is '
        "alike is what the code says. Left, the mean true action of all pairs that have it.</p>"
        f'<img class="motion" src="{uri}" alt="Pairs of frames that share a code, side by side"></section>'
    )


def _curves(train: Lines, val: Lines) -> str:
    names = list(dict.fromkeys(key for line in [*train, *val] for key in line))
    parts = [name for name in names if name.startswith("loss/")]
    charts = [
        ("Loss", "mean over the steps of a line", {"training": (train, "loss"), "held out": (val, "loss")}, False)
    ]
    for part in parts if len(parts) > 1 else []:
        what = part.removeprefix("loss/")
        charts.append((f"Loss: {what}", "", {"training": (train, part), "held out": (val, part)}, False))
    charts += [
        (
            "Perplexity of the codes",
            "of the steps of a line, and since the start",
            {"window": (train, "perplexity"), "since the start": (train, "perplexity_total")},
            True,
        ),
        ("Codes used", "by the steps of a line", {"codes": (train, "codes_used")}, True),
        ("Gradient norm", "before clipping", {"norm": (train, "grad_norm")}, True),
        ("Speed", "pairs a second", {"pairs a second": (train, "samples_per_s")}, True),
    ]
    cards = "".join(
        f'<div class="card"><h3>{escape(title)}</h3><p>{escape(note)}</p>'
        f"{curves_svg({label: _points(lines, key) for label, (lines, key) in of.items()}, name=title, from_zero=zero)}"
        "</div>"
        for title, note, of, zero in charts
    )
    return (
        '<section aria-labelledby="curves-title"><h2 id="curves-title">Training</h2>'
        '<p class="lead">From <code>metrics.jsonl</code> of the run, over its steps.</p>'
        f'<div class="charts">{cards}</div></section>'
    )


def _points(lines: Lines, key: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]


def _usage(judgement: Judgement) -> str:
    counts = sorted((int(count) for count in judgement.usage.total), reverse=True)
    top, wide = max(counts), _BAR_WIDTH / len(counts)
    floor = _BAR_HEIGHT - 18
    bars = "".join(
        f'<rect class="bar" x="{at * wide:.2f}" y="{floor - max(count / top * (floor - 6), 1):.2f}" '
        f'width="{max(wide - 0.6, 0.4):.2f}" height="{max(count / top * (floor - 6), 1):.2f}">'
        f"<title>{count:,} times</title></rect>"
        for at, count in enumerate(counts)
        if count
    )
    svg = (
        f'<svg viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" role="img" aria-label="How often each code is used, sorted">'
        f'<line class="rule" x1="0" x2="{_BAR_WIDTH}" y1="{floor}" y2="{floor}"/>{bars}'
        f'<text class="tick" x="0" y="{_BAR_HEIGHT - 3}">most used</text>'
        f'<text class="tick" x="{_BAR_WIDTH}" y="{_BAR_HEIGHT - 3}" text-anchor="end">{len(counts):,} codes</text>'
        "</svg>"
    )
    places = ", ".join(f"{value:.0f}" for value in judgement.usage.perplexity_by_place())
    note = (
        f"{judgement.usage.used} of {len(counts)} codes used, perplexity {judgement.usage.perplexity:.1f}; "
        f"by place {places}"
    )
    return (
        '<section aria-labelledby="usage-title"><h2 id="usage-title">Code usage</h2>'
        '<p class="lead">How often each code of the codebook, which all places of a pair share, stands for a pair; '
        "the most used code first.</p>"
        f'<div class="charts"><div class="card wide"><h3>Uses of each code</h3><p>{escape(note)}</p>{svg}</div></div>'
        "</section>"
    )


def _origin(judgement: Judgement) -> str:
    values = judgement.as_json()
    shown = {
        "run": judgement.run,
        "store": judgement.store,
        **{name: values[name] for name in ("target", "baseline", "offset_seconds", "clips", "pairs", "seed")},
    }
    text = json.dumps(values, indent=2, ensure_ascii=False)
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in shown.items()
    )
    return (
        '<section aria-labelledby="origin-title"><h2 id="origin-title">What was judged</h2>'
        '<p class="lead">Enough to measure it again.</p>'
        f'<div class="card"><dl class="facts-list">{rows}</dl></div><div class="gap"></div>'
        f"<details><summary>All figures as JSON</summary><pre>{escape(text)}</pre></details></section>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_plain(item)}" for name, item in value.items())
    return str(value)


def _digits(value: float) -> str:
    return f"{value:.3f}"


def _range(ci95: tuple[float, float]) -> str:
    return f"{ci95[0]:.3f} to {ci95[1]:.3f}"


def _with_range(score: Score) -> str:
    return f'{_digits(score.nmse)} <span class="quiet">[{_range(score.ci95)}]</span>'


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text("utf-8")
