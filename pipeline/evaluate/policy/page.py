"""The page of a judged policy as one self-contained HTML file: success by task, every episode, films, settings.

All that comes from a run or a simulator is escaped here.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from pipeline.evaluate.policy.judgement import Judgement, TaskScore
from pipeline.evaluate.policy.trials import TrialResult
from pipeline.inspect_html import fill
from pipeline.page.charts import number, table
from pipeline.page.sections import plural

_WIDE, _TALL = 900, 56
_SPAN = 240  # of an interval's drawing


def render_page(judgement: Judgement) -> str:
    """The page as text."""
    return render(
        title=f"{judgement.policy['name']} · policy",
        header=_header(judgement),
        sections=[_success(judgement), _episodes(judgement), _films(judgement), _origin(judgement)],
    )


def render(*, title: str, header: str, sections: Sequence[str], styles: Sequence[str] = ()) -> str:
    """A page of this kind: `title` is text, `styles` CSS, the rest HTML."""
    return fill(
        asset("pipeline.evaluate.policy", "page.html"),
        {
            "title": escape(title),
            "style": asset("pipeline.page", "style.css"),
            "policy_style": "\n".join([*styles, asset("pipeline.evaluate.policy", "page.css")]),
            "header": header,
            "sections": "\n".join(sections),
            "footer": "<p>Written by <code>cla eval policy</code>. This page loads nothing from any network.</p>",
        },
    )


def _header(judgement: Judgement) -> str:
    settings, scores = judgement.settings, judgement.scores
    figures = [(score.task, _percent(score.rate), f"success, {_interval(score.ci95)}") for score in scores[:6]]
    if len(scores) > 1:
        figures.insert(0, ("mean success", _percent(judgement.mean_success), f"over {plural(len(scores), 'task')}"))
    figures.append(("speed", f"{judgement.steps_per_s:.0f}", "control steps a second, all episodes"))
    return head(
        eyebrow="Policy in closed loop",
        name=str(judgement.policy["name"]),
        sentence=f"{_who(judgement.policy)}, in {settings['environment']}: "
        f"{plural(settings['episodes'], 'episode')} a task, seed {settings['seed']}{_shown(settings)}",
        figures=figures,
        digest=str(judgement.policy.get("weights_sha256", "")),
        warnings=judgement.warnings,
    )


def head(
    *,
    eyebrow: str,
    name: str,
    sentence: str,
    figures: Sequence[tuple[str, str, str]],
    digest: str,
    warnings: Sequence[str],
) -> str:
    """Title, sentence, warnings and figures (name, value, note) of a page; all given as text."""
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd><dd class='note'>{escape(note)}</dd></div>"
        for title, value, note in figures
    )
    banners = "".join(f'<div class="banner"><p>{escape(warning)}</p></div>' for warning in warnings)
    weights = f'<p class="digest">weights <code>{escape(digest)}</code></p>' if digest else ""
    return (
        f'<p class="eyebrow">{escape(eyebrow)}</p>\n<h1>{escape(name)}</h1>\n<p class="made">{escape(sentence)}.</p>\n'
        f'{banners}<dl class="figures">{cells}</dl>\n{weights}'
    )


def _success(judgement: Judgement) -> str:
    rows = [
        [
            escape(score.task),
            f'<b>{_percent(score.rate)}</b> <span class="quiet">{score.successes} of {score.episodes}</span>',
            _interval_svg(score),
            escape(_interval(score.ci95)),
            f"{score.mean_length:.1f} steps",
            "–" if score.mean_success_length is None else f"{score.mean_success_length:.1f} steps",
        ]
        for score in judgement.scores
    ]
    columns = ["task", "success", "0 to 100 %", "95 % interval", "mean length", "of successes"]
    return (
        '<section aria-labelledby="success-title"><h2 id="success-title">Success by task</h2>'
        '<p class="lead">An episode ends in the step in which its task is done, and has failed at the cap of steps. '
        f"Intervals are Wilson's, 95 %.</p>{table(columns, rows)}</section>"
    )


def _interval_svg(score: TaskScore) -> str:
    low, high = score.ci95
    at = 6 + score.rate * _SPAN
    return (
        f'<svg class="interval" viewBox="0 0 {_SPAN + 12} 22" width="{_SPAN + 12}" role="img" '
        f'aria-label="{_percent(score.rate)}, {_interval(score.ci95)}">'
        f'<line class="track" x1="6" x2="{_SPAN + 6}" y1="11" y2="11"/>'
        f'<line class="range" x1="{6 + low * _SPAN:.1f}" x2="{6 + high * _SPAN:.1f}" y1="11" y2="11"/>'
        f'<circle class="rate" cx="{at:.1f}" cy="11" r="5"/></svg>'
    )


def _episodes(judgement: Judgement) -> str:
    rows = "".join(
        f"<h3>{escape(score.task)}</h3>{_strip(judgement.of(score.task))}"
        f'<span class="quiet">{score.successes} of {score.episodes:,}</span>'
        for score in judgement.scores
    )
    return (
        '<section aria-labelledby="episodes-title"><h2 id="episodes-title">Every episode</h2>'
        '<p class="lead">In the order of their numbers; as tall as it is long. Hover for the instruction.</p>'
        f'<div class="card outcomes">{rows}</div>'
        '<p class="keys"><span class="key">success</span><span class="key failure">failure</span></p></section>'
    )


def _strip(results: Sequence[TrialResult]) -> str:
    wide = min(_WIDE / len(results), 24.0)
    top = max(result.steps for result in results) or 1
    bars = []
    for at, result in enumerate(results):
        tall = max(result.steps / top * (_TALL - 4), 3.0)
        outcome = "success" if result.success else "failure"
        hover = f"{result.trial.index}: {result.instruction} – {outcome} after {result.steps} steps"
        bars.append(
            f'<rect class="{outcome}" x="{at * wide:.2f}" y="{_TALL - tall:.2f}" '
            f'width="{max(wide - 2, wide * 0.7):.2f}" height="{tall:.2f}" rx="1.5">'
            f"<title>{escape(hover)}</title></rect>"
        )
    return (
        f'<svg viewBox="0 0 {_WIDE} {_TALL + 1}" role="img" aria-label="Episodes by length and outcome">'
        f'{"".join(bars)}<line class="rule" x1="0" x2="{_WIDE}" y1="{_TALL}" y2="{_TALL}"/></svg>'
    )


def _films(judgement: Judgement) -> str:
    filmed = [result for result in judgement.results if result.film is not None]
    if not filmed:
        return ""
    cards = "".join(_film(result) for result in filmed)
    return (
        '<section aria-labelledby="films-title"><h2 id="films-title">Films</h2>'
        '<p class="lead">The first episodes of each task, whatever came of them, in real time.</p>'
        f'<div class="films">{cards}</div></section>'
    )


def _film(result: TrialResult) -> str:
    assert result.film is not None
    uri = f"data:video/mp4;base64,{base64.b64encode(result.film).decode()}"
    outcome = "success" if result.success else "failure"
    return (
        f'<article class="film"><video src="{uri}" controls muted loop autoplay playsinline '
        f'aria-label="{escape(result.instruction)}"></video><h3>{escape(result.instruction)}</h3>'
        f'<p><span class="tag {outcome}">{outcome}</span> {escape(result.trial.task)} {result.trial.index}, '
        f"{plural(result.steps, 'step')}{escape(f': {result.problem}' if result.problem else '')}</p></article>"
    )


def _origin(judgement: Judgement) -> str:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in judgement.seconds_of.items())
    shown = {
        **{f"policy {name}": value for name, value in judgement.policy.items()},
        **judgement.settings,
        "wall time": f"{judgement.seconds:.1f} s",
        "time by part, summed over processes": seconds,
    }
    return origin("How it was judged", shown, judgement.as_json())


def origin(title: str, facts: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """A section of facts by name, with all figures as JSON folded below."""
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in facts.items()
    )
    text = json.dumps(values, indent=2, ensure_ascii=False)
    return (
        f'<section aria-labelledby="origin-title"><h2 id="origin-title">{escape(title)}</h2>'
        '<p class="lead">Enough to measure it again.</p>'
        f'<div class="card"><dl class="facts-list">{rows}</dl></div><div class="gap"></div>'
        f"<details><summary>All figures as JSON</summary><pre>{escape(text)}</pre></details></section>"
    )


def _who(policy: Mapping[str, Any]) -> str:
    if "recipe" not in policy:
        return f"{str(policy['name'])[:1].upper()}{str(policy['name'])[1:]} as a reference"
    return f"Recipe {policy['recipe']} after {policy['step']:,} steps"


def _shown(settings: Mapping[str, Any]) -> str:
    parts = {"unseen": ", from cameras that no recording has", "moving": ", from a moving camera"}
    return parts.get(settings["camera"], "") + (", among distractors" if settings["distractors"] else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {_plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return number(value) if isinstance(value, float) else str(value)


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %" if share < 1 else "100 %"


def _interval(ci95: tuple[float, float]) -> str:
    return f"{ci95[0] * 100:.1f} to {ci95[1] * 100:.1f} %"


def asset(package: str, name: str) -> str:
    """The text of a file of a package."""
    return files(package).joinpath(name).read_text("utf-8")
