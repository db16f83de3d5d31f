"""`cla inspect-shards --html`: one self-contained page that shows what a store holds."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.records import ClipRecord
from pipeline.config import FailedError, RequestError
from pipeline.inspect_text import beside
from pipeline.page import sections
from pipeline.page.charts import Histogram, ramp_css
from pipeline.page.clouds import (
    MAX_CLIPS,
    ClipView,
    Components,
    clip_view,
    fit_components,
    frames_a_clip,
    point_conf,
    point_depth,
    spread,
)
from pipeline.page.pictures import colour_map, packed
from pipeline.page.sections import PageFacts
from pipeline.store import StoreError, open_store
from pipeline.store.rules import check_record

if TYPE_CHECKING:
    from pipeline.inspect_shards import StoreSummary
    from pipeline.store.loader import Store

SCRIPTS = ("geometry.js", "painters.js", "viewer.js")
_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")


def write_page(store: str, summary: "StoreSummary", out: Path) -> None:
    """Write the page of a store to `out`: its numbers, and some frames of up to 8 clips spread over it.

    A clip that cannot be read or breaks a rule of the schema is named on the page with the reason, not shown.

    Raises:
        RequestError: there is no store, or no folder for `out`.
        FailedError: `out` cannot be written.
    """
    if not out.parent.is_dir():
        raise RequestError(f"There is no folder {out.parent}: create it, or name another file for --html.")
    opened = open_store(store)
    records, unread = _read(opened)
    frames = [spread(len(record), frames_a_clip(len(records))) for record in records]
    components = fit_components(records, frames)
    width = opened.manifest.sizes["W"]
    clips = [clip_view(record, i, components, width) for record, i in zip(records, frames, strict=True)]
    facts = page_facts(summary, opened.manifest.model_dump(mode="json"), records, frames)
    page = render_page(facts, clips, components, width=width, unread=unread)
    try:
        out.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise FailedError(f"The page cannot be written to {out}: {error.strerror or error}.") from error


def _read(store: "Store") -> tuple[list[ClipRecord], list[tuple[str, str]]]:
    records, unread = [], []
    for i in spread(len(store), MAX_CLIPS):
        try:
            record = store[i]
            check_record(record, store.manifest.sizes)
        except (StoreError, ValueError) as error:
            unread.append((store.info(i).key, str(error)))
        else:
            records.append(record)
    return records, unread


def page_facts(
    summary: "StoreSummary",
    manifest: Mapping[str, Any],
    records: Sequence[ClipRecord],
    frames: Sequence[Sequence[int]],
) -> PageFacts:
    """What the page says of a store; depth and confidence are counted over `frames` of `records`."""
    shown = [(record, i) for record, chosen in zip(records, frames, strict=True) for i in chosen]
    depth = np.concatenate([np.zeros(0), *(point_depth(record, i) for record, i in shown)])
    conf = np.concatenate([np.zeros(0), *(point_conf(record, i) for record, i in shown)])
    tokens, rows = summary.tokens_per_frame, summary.tokens_histogram
    spec = summary.dataset.spec
    damages = summary.every_damage
    return PageFacts(
        where=summary.path,
        title=str(spec.get("title") or summary.dataset.name),
        dataset=summary.dataset.name,
        split=summary.dataset.split,
        licence=str(spec.get("licence", "")),
        format=summary.format,
        clips=summary.clips,
        frames=summary.frames,
        bytes_per_frame=summary.bytes_per_frame or 0.0,
        bytes_by_array=summary.bytes_per_frame_by_array,
        compression=summary.compression_vs_dense,
        dense_layout=summary.dense_layout,
        dense_bytes=summary.dense_bytes_per_frame,
        digest=summary.digest,
        tokens=None if tokens is None else (tokens.min, tokens.median, tokens.max),
        token_histogram=Histogram(edges=(), counts=()) if rows is None else Histogram(**rows.model_dump()),
        depth_histogram=Histogram.of(depth),
        conf_histogram=Histogram.of(conf),
        depth_range=None if summary.depth is None else (summary.depth.min, summary.depth.max),
        conf_range=None if summary.confidence is None else (summary.confidence.min, summary.confidence.max),
        seen=f"over the {sections.plural(len(shown), 'frame')} on this page",
        nonfinite=summary.nonfinite,
        rejected=[(clip.key, clip.reason) for clip in summary.rejected_clips],
        rejected_total=summary.rejected,
        damages=[": ".join(part for part in (d.shard, d.array, d.problem) if part) for d in damages],
        verified=summary.verified,
        models=summary.models,
        manifest=manifest,
        beside=beside(summary),
    )


def render_page(
    facts: PageFacts,
    clips: Sequence[ClipView],
    components: Components,
    *,
    width: int,
    unread: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as text.

    Args:
        facts: what is said about the whole store.
        clips: the clips that are shown; without any the page has no viewer.
        components: of their features.
        width: side of the stored frames in pixels.
        unread: key and reason of clips that were to be shown and could not be read.
    """
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"
    ramps = {name: ramp_css(colour_map(name)) for name in ("conf", "depth")}
    return fill(
        _asset("template.html"),
        {
            "title": sections.page_title(facts),
            "style": _asset("style.css"),
            "script": script,
            # the page runs this script and no other, whatever a store's texts may hold
            "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            "data": script_json(_data(clips, width)),
            "header": sections.header(facts),
            "viewer": fill(_asset("viewer.html"), sections.viewer(clips, components, ramps)) if clips else "",
            "gallery": sections.gallery(facts, clips, unread),
            "distributions": sections.distributions(facts),
            "origin": sections.origin(facts),
            "rejected": sections.rejected(facts),
            "reading": sections.reading(facts),
            "manifest": sections.manifest(facts),
            "footer": sections.footer(facts),
        },
    )


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every `{{name}}` replaced, in one pass: a value that looks like a placeholder stays as it is."""
    return _PLACE.sub(lambda match: values[match[1]], template)


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: ASCII only, and no `<` that could close it or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(clips: Sequence[ClipView], width: int) -> dict[str, Any]:
    return {
        "width": width,
        "maps": {name: packed(colour_map(name)) for name in ("conf", "depth")},
        "clips": [
            {
                "key": clip.key,
                "text": clip.text,
                "length": clip.length,
                "depthScale": clip.depth_scale,
                "confScale": clip.conf_scale,
                "frames": [
                    {
                        "number": frame.number,
                        "time": frame.time,
                        "tokens": frame.tokens,
                        "points": frame.points,
                        **frame.data,
                    }
                    for frame in clip.frames
                ],
            }
            for clip in clips
        ],
    }


def _asset(name: str) -> str:
    return files("pipeline.page").joinpath(name).read_text("utf-8")
