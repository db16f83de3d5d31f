"""The page of a policy in open loop, and its lines for a person."""

from collections.abc import Iterator
from html import escape

from pipeline.evaluate.curves import curves_svg
from pipeline.evaluate.policy.openloop import OpenLoop
from pipeline.evaluate.policy.page import asset, head, origin, render
from pipeline.page.charts import number, table
from pipeline.page.sections import plural

_A_CHART = 4


def open_loop_lines(found: OpenLoop) -> Iterator[str]:
    """A table of the dimensions."""
    values = found.as_json()["open_loop"]
    yield (
        f"{found.policy['name']} on {plural(found.frames, 'moment')} of {plural(found.clips, 'held-out episode')}: "
        f"mean absolute error {values['normalised_error']:.3f} of the actions' deviation "
        f"(saying their mean: {values['normalised_error_of_the_mean']:.3f})"
    )
    yield f"{'dimension':18} {'error':>10} {'rms':>10} {'deviation':>10} {'share':>7}"
    for name in found.names:
        share = values["normalised_error_by_dimension"].get(name)
        yield (
            f"{name:18} {values['absolute_error_by_dimension'][name]:>10.4g} "
            f"{values['rms_error_by_dimension'][name]:>10.4g} {values['std_by_dimension'][name]:>10.4g} "
            f"{'constant' if share is None else f'{share:.3f}':>7}"
        )
    steps = values["normalised_error_by_step"]
    shown = sorted({0, *(round(at * (len(steps) - 1) / 4) for at in range(5))})
    yield "by step            " + "  ".join(f"{at}: {steps[at]:.3f}" for at in shown)


def render_open_loop(found: OpenLoop) -> str:
    """The page as text."""
    values = found.as_json()["open_loop"]
    return render(
        title=f"{found.policy['name']} · open loop",
        header=head(
            eyebrow="Policy in open loop",
            name=str(found.policy["name"]),
            sentence=f"Recipe {found.policy['recipe']} after {found.policy['step']:,} steps, beside what was done at "
            f"{plural(found.frames, 'moment')} of {plural(found.clips, 'episode')} that it was not trained on",
            figures=[
                ("error", f"{values['normalised_error']:.3f}", "mean absolute, as a share of the actions' deviation"),
                ("saying the mean", f"{values['normalised_error_of_the_mean']:.3f}", "of the training actions"),
                ("first step", f"{values['normalised_error_by_step'][0]:.3f}", "of a chunk"),
                ("last step", f"{values['normalised_error_by_step'][-1]:.3f}", f"step {found.horizon} of a chunk"),
            ],
            digest=str(found.policy.get("weights_sha256", "")),
            warnings=(),
        ),
        sections=[_dimensions(found), _steps(found), _origin(found)],
        styles=(asset("pipeline.evaluate", "page.css"),),
    )


def _dimensions(found: OpenLoop) -> str:
    values = found.as_json()["open_loop"]
    rows = [
        [
            escape(name),
            number(values["absolute_error_by_dimension"][name]),
            number(values["rms_error_by_dimension"][name]),
            number(values["std_by_dimension"][name]),
            f"{values['normalised_error_by_dimension'][name]:.3f}"
            if name in values["normalised_error_by_dimension"]
            else '<span class="quiet">constant</span>',
        ]
        for name in found.names
    ]
    columns = ["dimension", "mean absolute error", "root mean square", "deviation in training", "error / deviation"]
    return (
        '<section aria-labelledby="dimensions-title"><h2 id="dimensions-title">By dimension</h2>'
        "<p class='lead'>Over all steps of a chunk, in the dataset's units; the last column as a share of the standard "
        f"deviation of the training actions.</p>{table(columns, rows)}</section>"
    )


def _steps(found: OpenLoop) -> str:
    error = found.normalised(found.absolute)
    moving = [name for name, varies in zip(found.names, found.varying, strict=True) if varies]
    values = found.as_json()["open_loop"]
    groups = [("mean over dimensions", {"policy": values["normalised_error_by_step"]})]
    for start in range(0, len(moving), _A_CHART):
        names = moving[start : start + _A_CHART]
        groups.append((", ".join(names), {name: error[:, start + at].tolist() for at, name in enumerate(names)}))
    cards = "".join(
        f'<div class="card"><h3>{escape(title)}</h3><p>error as a share of the deviation, by step of the chunk</p>'
        f"{curves_svg(_points(lines), name=title, from_zero=True)}</div>"
        for title, lines in groups
    )
    return (
        '<section aria-labelledby="steps-title"><h2 id="steps-title">By step of the chunk</h2>'
        '<p class="lead">The first step is done at once, the last at the end of the chunk.</p>'
        f'<div class="charts">{cards}</div></section>'
    )


def _points(lines: dict[str, list[float]]) -> dict[str, list[tuple[float, float]]]:
    return {name: [(float(at), value) for at, value in enumerate(line)] for name, line in lines.items()}


def _origin(found: OpenLoop) -> str:
    facts = {
        **{f"policy {name}": value for name, value in found.policy.items()},
        **{f"store {name}": value for name, value in found.store.items()},
        "moments": found.frames,
        "episodes": found.clips,
    }
    return origin("What was measured", facts, found.as_json())
