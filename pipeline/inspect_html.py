"""`cla inspect-shards --html`: one self-contained page that shows what a store holds."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from pipeline.page import sections
from pipeline.page.charts import ramp_css
from pipeline.page.clouds import ClipView, Components
from pipeline.page.pictures import colour_map, packed
from pipeline.page.sections import PageFacts

SCRIPTS = ("geometry.js", "painters.js", "viewer.js")
_PLACE = re.compile(r"\{\{([a-z_]+)\}\}")


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
