"""The sections of the page as HTML. All that comes from a store is escaped here: keys and reasons are not ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from data_specs.shards import VISION, ModelRecord
from pipeline.page.charts import Histogram, bar_list, histogram_svg, number, size, table
from pipeline.page.clouds import ClipView, Components

MAX_REJECTED = 200
MAX_DAMAGES = 50
_NAMES = {"vggt": "VGGT", "concerto": "Concerto", "text": "a text encoder"}


@dataclass(frozen=True, kw_only=True)
class PageFacts:
    """What the page says about a whole store, whatever computed it.

    `bytes_per_frame` of everything, `bytes_by_array` its parts; `compression` against `dense_bytes` a frame of an array
    laid out as `dense_layout`;
    `rejected` pairs of key and reason, of `rejected_total`; `damages` sentences; `verified` None when nobody looked.
    `beside` says in words what else a frame has, by title (image encoders, cameras, language).
    `depth_range` and `conf_range` are of all frames, their histograms of what `seen` says; `nonfinite` counts by array.
    """

    where: str
    title: str
    dataset: str
    split: str
    licence: str
    format: str
    clips: int
    frames: int
    bytes_per_frame: float
    bytes_by_array: Mapping[str, float]
    compression: float | None
    dense_layout: str
    dense_bytes: float
    digest: str | None
    tokens: tuple[float, float, float] | None
    token_histogram: Histogram
    depth_histogram: Histogram
    conf_histogram: Histogram
    depth_range: tuple[float, float] | None
    conf_range: tuple[float, float] | None
    seen: str
    nonfinite: Mapping[str, int]
    rejected: Sequence[tuple[str, str]]
    rejected_total: int
    damages: Sequence[str]
    verified: bool | None
    models: Sequence[ModelRecord]
    manifest: Mapping[str, Any]
    beside: Mapping[str, str] = field(default_factory=dict)


def page_title(facts: PageFacts) -> str:
    """Text of the title element."""
    return escape(f"{facts.title} · feature store")


def header(facts: PageFacts) -> str:
    """Title, what made the store, warnings, and the figures."""
    sentence = f"{plural(facts.clips, 'clip')} and {plural(facts.frames, 'frame')}"
    names = _listed(list(dict.fromkeys(_name(model) for model in facts.models)))
    if names:
        sentence += f" through {names}: every frozen feature computed once, kept exactly, ready to train from"
    figures = [
        ("clips", f"{facts.clips:,}", ""),
        ("frames", f"{facts.frames:,}", ""),
        ("bytes a frame", _unit(size(facts.bytes_per_frame)) if facts.frames else "–", f"{facts.format} shards"),
        (
            "times smaller",
            f"{number(round(facts.compression, 1))}<small>×</small>" if facts.compression else "–",
            f"than dense {facts.dense_layout}",
        ),
        (
            "distinct rows N′",
            number(facts.tokens[1]) if facts.tokens else "–",
            f"median; {number(facts.tokens[0])} to {number(facts.tokens[2])} a frame" if facts.tokens else "",
        ),
        ("rejected", f"{facts.rejected_total:,}", "bad clips, listed below" if facts.rejected_total else "no bad clip"),
    ]
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}</dd><dd class='note'>{escape(note)}</dd></div>"
        for name, value, note in figures
    )
    checked = {True: " · every checksum verified", False: " · damaged", None: ""}[facts.verified]
    digest = f"content digest <code>{escape(facts.digest)}</code>{checked}" if facts.digest else ""
    return (
        f'<p class="eyebrow">Feature store</p>\n<h1>{escape(facts.title)}</h1>\n'
        f'<p class="made">{sentence}.</p>\n{_banners(facts)}\n<dl class="figures">{cells}</dl>\n'
        f'<p class="digest">{digest}</p>'
    )


def _banners(facts: PageFacts) -> str:
    parts = []
    if facts.damages:
        items = "".join(f"<li>{escape(text)}</li>" for text in facts.damages[:MAX_DAMAGES])
        if len(facts.damages) > MAX_DAMAGES:
            items += f"<li>and {len(facts.damages) - MAX_DAMAGES:,} more</li>"
        parts.append(
            '<div class="banner bad" role="alert"><p><strong>This store is damaged.</strong> '
            f"Do not train from it before it is mended.</p><ul>{items}</ul></div>"
        )
    if facts.nonfinite:
        counts = ", ".join(f"{escape(name)} {count:,}" for name, count in facts.nonfinite.items())
        parts.append(f'<div class="banner bad"><p><strong>Values that are not finite.</strong> {counts}</p></div>')
    random = [model for model in facts.models if model.random]
    if random:
        names = _listed([f"{_name(model)} (<code>{escape(model.name)}</code>)" for model in random])
        if all(model.role == "text" for model in random):
            said = "It tells instructions apart and knows nothing of what they mean."
        else:
            what = "Depth and features" if any(model.role == "vggt" for model in random) else "Features"
            said = (
                f"{what} here show that the pipeline works, not what the scene is: train nothing that matters on them."
            )
        parts.append(
            f'<div class="banner"><p><strong>Random weights.</strong> {names} '
            f"{'is' if len(random) == 1 else 'are'} not trained. {said}</p></div>"
        )
    return "\n".join(parts)


def _name(model: ModelRecord) -> str:
    """What a person calls the model of a role, escaped."""
    return _NAMES.get(model.role, escape(model.role.removeprefix(VISION)))


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def viewer(clips: Sequence[ClipView], components: Components, ramps: Mapping[str, str]) -> dict[str, str]:
    """Values of the placeholders of `viewer.html`; `ramps` are the colour maps as CSS."""
    buttons = []
    for at, clip in enumerate(clips):
        image = clip.frames[0].image
        picture = f'<img src="{image}" alt="">' if image else '<i class="blank"></i>'
        buttons.append(
            f'<button type="button" data-clip-button="{at}" aria-pressed="{"true" if at == 0 else "false"}" '
            f'title="{escape(clip.key)}">{picture}<span>{escape(clip.text or clip.key)}</span></button>'
        )
    legend = "first three principal components " + " ".join(
        f'<span><i class="dot" style="background:{colour}"></i>{share:.0%}</span>'
        for colour, share in zip(("#d3524d", "#45994f", "#4a7fd0"), components.share, strict=True)
    )
    most = max((frame.points for clip in clips for frame in clip.frames), default=0)
    return {
        "points": f"up to {most:,}",
        "clip_buttons": "\n".join(buttons),
        "pca_legend": legend,
        "conf_ramp": ramps["conf"],
        "depth_ramp": ramps["depth"],
    }


def gallery(facts: PageFacts, clips: Sequence[ClipView], unread: Sequence[tuple[str, str]]) -> str:
    """Frames as stored above their depth, clip by clip."""
    if not clips and not unread:
        return (
            '<section><h2>No clips</h2><p class="lead">This store holds none: there is nothing to show.</p></section>'
        )
    shown = sum(len(clip.frames) for clip in clips)
    cards = [_card(at, clip) for at, clip in enumerate(clips)]
    cards += [
        f'<article class="clip"><h3>{escape(key)}</h3>'
        f'<p class="facts">could not be read: {escape(reason)}</p></article>'
        for key, reason in unread
    ]
    return (
        '<section aria-labelledby="gallery-title"><h2 id="gallery-title">Frames and their depth</h2>'
        f'<p class="lead">{plural(shown, "frame")} of {plural(len(clips), "clip")}, spread evenly over the '
        f"{facts.clips:,} in the store. Above, the image as it is stored; below, the depth of its stored points, "
        "each spread to the empty pixels around it (light is near; the scale is the clip's own). "
        f'Choose a frame to see its cloud.</p><div class="gallery">{"".join(cards)}</div></section>'
    )


def _card(at: int, clip: ClipView) -> str:
    low, high = clip.depth_scale
    parts = [f"<code>{escape(clip.key)}</code>", escape(clip.split), plural(clip.length, "frame")]
    parts.append(f"depth {number(low)} to {number(high)}")
    frames = []
    for index, frame in enumerate(clip.frames):
        pictures = ""
        for kind, uri in (("image", frame.image), ("depth", frame.depth)):
            if uri:
                alt = f"{'Frame' if kind == 'image' else 'Depth'} at {frame.time:.2f} s"
                pictures += f'<img data-of="{kind}" data-at="{at}/{index}" src="{uri}" alt="{alt}">'
            else:
                pictures += '<span class="blank">not an image</span>'
        frames.append(
            f'<button type="button" data-goto="{at}/{index}">{pictures}'
            f"<span><b>{frame.time:.2f} s</b><br>N′ {frame.tokens:,}</span></button>"
        )
    return (
        f'<article class="clip"><h3>{escape(clip.text or clip.key)}</h3>'
        f'<p class="facts">{" · ".join(part for part in parts if part)}</p>'
        f'<div class="strip" style="grid-template-columns:repeat({min(len(frames), 6)},1fr)">'
        f"{''.join(frames)}</div>{_cameras(clip)}</article>"
    )


def _cameras(clip: ClipView) -> str:
    """What further cameras saw at the first frame shown."""
    shown = "".join(
        f'<figure>{f"""<img src="{uri}" alt="Camera {escape(name)}">""" if uri else "not an image"}'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, uri in clip.cameras
    )
    return f'<div class="cameras">{shown}</div>' if shown else ""


def distributions(facts: PageFacts) -> str:
    """Histograms and the bytes by array."""
    if not facts.frames:
        return ""
    median = facts.tokens[1] if facts.tokens else None
    rows = histogram_svg(facts.token_histogram, name="N′", unit="rows", mark=median)
    depth = histogram_svg(facts.depth_histogram, name="depth", unit="depth units")
    conf = histogram_svg(facts.conf_histogram, name="confidence", unit="")
    cards = [
        ("Distinct rows N′ a frame", "over all frames", rows),
        ("Depth", _over(facts.depth_range, facts.seen), depth),
        ("Confidence", _over(facts.conf_range, facts.seen), conf),
    ]
    charts = "".join(f'<div class="card"><h3>{escape(a)}</h3><p>{escape(b)}</p>{c}</div>' for a, b, c in cards)
    note = f"{size(facts.bytes_per_frame)} in all"
    if facts.compression:
        note += f", where {facts.dense_layout} takes {size(facts.dense_bytes)}"
    amounts = dict(facts.bytes_by_array)
    if amounts and facts.bytes_per_frame > sum(amounts.values()):
        amounts["the files themselves"] = facts.bytes_per_frame - sum(amounts.values())
    charts += f'<div class="card wide"><h3>Bytes a frame, by array</h3><p>{escape(note)}</p>{bar_list(amounts)}</div>'
    return (
        '<section aria-labelledby="numbers-title"><h2 id="numbers-title">In numbers</h2>'
        '<p class="lead">A coarse feature is shared by all points of its cell: only the N′ distinct rows are stored, '
        f'with a count each.</p><div class="charts">{charts}</div></section>'
    )


def _over(limits: tuple[float, float] | None, seen: str) -> str:
    if limits is None:
        return seen
    low, high = number(limits[0]), number(limits[1])
    return f"{low if low == high else f'{low} to {high}'} in the store; counted {seen}"


def origin(facts: PageFacts) -> str:
    """The models and the data the store was made from."""
    rows = []
    for model in facts.models:
        weights = '<span class="tag warn">random weights</span>' if model.random else '<span class="tag">trained</span>'
        rows.append(
            [
                escape(model.role),
                escape(model.name),
                weights,
                f"<code>{escape(model.revision or '–')}</code>",
                f'<code title="{escape(model.sha256)}">{escape(model.sha256[:12] or "–")}</code>',
                escape(model.licence or "–"),
            ]
        )
    models = table(["", "model", "weights", "revision", "SHA-256", "licence"], rows) if rows else ""
    recipe, geometry = facts.manifest.get("recipe", {}), facts.manifest.get("geometry", {})
    data = {
        "dataset": facts.dataset,
        "split": facts.split or "all",
        "licence": facts.licence or "–",
        "read from": facts.manifest.get("dataset", {}).get("root") or "generated, or not recorded",
        "store": facts.where,
        **facts.beside,
    }
    made = {"recipe": recipe.get("name", "–"), "seed": facts.manifest.get("seed", "–")}
    made |= {str(key): value for key, value in geometry.items()}
    return (
        '<section aria-labelledby="origin-title"><h2 id="origin-title">What it is made from</h2>'
        f'<p class="lead">Enough to make it again, byte for byte.</p>{models}'
        f'<div class="two"><div class="card"><h3>Data</h3>{_facts_list(data)}</div>'
        f'<div class="card"><h3>Recipe and geometry</h3>{_facts_list(made)}</div></div></section>'
    )


def _facts_list(facts: Mapping[str, Any]) -> str:
    rows = (
        f"<dt>{escape(name.replace('_', ' '))}</dt>"
        f"<dd>{escape(value if isinstance(value, str) else json.dumps(value, default=str))}</dd>"
        for name, value in facts.items()
    )
    return f'<dl class="facts-list">{"".join(rows)}</dl>'


def rejected(facts: PageFacts) -> str:
    """Bad clips with their reasons; empty where there are none."""
    if not facts.rejected_total:
        return ""
    rows = [[f"<code>{escape(key)}</code>", escape(reason)] for key, reason in facts.rejected[:MAX_REJECTED]]
    more = ""
    if facts.rejected_total > len(rows):
        more = f" The first {len(rows):,} are listed; <code>rejected.jsonl</code> in the store has all of them."
    return (
        '<section aria-labelledby="rejected-title"><h2 id="rejected-title">Rejected clips</h2>'
        f'<p class="lead">{plural(facts.rejected_total, "clip")} could not be used. '
        f"Nothing was put in their place.{more}</p>"
        f"{table(['clip', 'reason'], rows)}</section>"
    )


def reading(facts: PageFacts) -> str:
    """How to read the store from Python."""
    code = (
        "from pipeline.store import open_store\n\n"
        f"store = open_store({facts.where!r})\n"
        "clip = store[0]                         # key, text, tokens, cells, points, camera, rgb\n"
        "rows = clip.tokens.features             # the distinct features of all its frames, float16\n"
        "first = slice(*clip.tokens.offset[:2])  # those of its first frame"
    )
    return (
        '<section aria-labelledby="read-title"><h2 id="read-title">Read it</h2>'
        f'<p class="lead">The same five lines for Zarr and WebDataset shards.</p><pre>{escape(code)}</pre></section>'
    )


def manifest(facts: PageFacts) -> str:
    """The manifest as it is, folded."""
    text = json.dumps(facts.manifest, indent=2, ensure_ascii=False, default=str)
    return (
        '<section aria-labelledby="manifest-title"><h2 id="manifest-title">Manifest</h2>'
        '<p class="lead">Dataset, models, recipe, seed and sizes, as <code>manifest.json</code> says them.</p>'
        f"<details><summary>manifest.json</summary><pre>{escape(text)}</pre></details></section>"
    )


def footer(facts: PageFacts) -> str:
    """Where the page came from."""
    return (
        f"<p>Written by <code>cla inspect-shards {escape(facts.where)} --html</code>. "
        "This page loads nothing from any network.</p>"
    )


def plural(count: int, word: str) -> str:
    """`1 clip`, `12 clips`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _unit(text: str) -> str:
    value, unit = text.split()
    return f"{escape(value)} <small>{escape(unit)}</small>"
