"""`cla inspect-shards` as a person reads it on a terminal."""

from collections.abc import Iterator

from pipeline.inspect_shards import Histogram, StoreSummary

BAR = 40
MOST_SHOWN = 10


def summary_lines(summary: StoreSummary) -> Iterator[str]:
    """What the store is, how large, what its frames look like, and what is wrong with it."""
    dataset = summary.dataset
    split = f", split {dataset.split}" if dataset.split else ""
    yield f"{summary.path}: {summary.format}, schema {summary.schema_version}, {summary.shards} shards"
    yield f"dataset    {dataset.name}{split} ({dataset.spec.get('title', '')}), root {dataset.root or 'none'}"
    for model in summary.models:
        identity = model.sha256[:12] or "no checkpoint"
        yield f"model      {model.role}: {model.name} {model.revision[:12]} [{identity}] {model.licence}"
    if summary.random_weights:
        yield f"WARNING    RANDOM weights: {', '.join(summary.random_weights)}. No features of a trained model."
    yield f"geometry   {summary.geometry.get('source', '?')}: {summary.geometry.get('world', '')}"
    yield f"content    {summary.clips} clips, {summary.frames} frames, {summary.bytes / 1e6:.1f} MB"
    if summary.bytes_per_frame is not None and summary.compression_vs_dense is not None:
        yield (
            f"size       {summary.bytes_per_frame:,.0f} bytes a frame, {summary.compression_vs_dense:.1f} times under "
            f"{summary.dense_layout} ({summary.dense_bytes_per_frame:,} bytes)"
        )
        for name, size in sorted(summary.bytes_per_frame_by_array.items(), key=lambda item: -item[1]):
            yield f"           {name:25} {size:10,.0f}  {size / summary.bytes_per_frame:5.1%}"
    if summary.tokens_dtype == "int8":
        yield "features   int8 with a scale for each channel of each frame; batches give float16"
    if not summary.points_kept:
        yield "points     none kept (store.points=false): clouds cannot be made from this store"
    for title, spread in (("tokens N'", summary.tokens_per_frame), ("points", summary.points_per_frame)):
        if spread is not None:
            yield f"{title:10} a frame: min {spread.min:g}, median {spread.median:g}, max {spread.max:g}"
    if summary.tokens_histogram is not None:
        yield from _bars(summary.tokens_histogram)
    for title, span in (("depth", summary.depth), ("confidence", summary.confidence)):
        if span is not None:
            yield f"{title:10} {span.min:.4g} to {span.max:.4g}"
    for title, text in beside(summary).items():
        yield f"{title:10} {text}"
    bad = {name: count for name, count in summary.nonfinite.items() if count}
    yield f"non-finite {', '.join(f'{count} in {name}' for name, count in bad.items()) or 'none'}"
    yield f"rejected   {summary.rejected} clips"
    for clip in summary.rejected_clips[:MOST_SHOWN]:
        yield f"           {clip.key}: {clip.reason}"
    if summary.rejected > MOST_SHOWN:
        yield f"           and {summary.rejected - MOST_SHOWN} more, see rejected.jsonl"
    for damage in summary.every_damage:
        yield f"DAMAGED    shard {damage.shard}{f', {damage.array}' if damage.array else ''}: {damage.problem}"
    verdict = {None: "not checked (--verify does)", True: "yes, all of it", False: "NO"}[summary.verified]
    yield f"verified   {verdict}"
    if summary.every_damage:
        yield f"remedy     `cla repair {summary.path}` makes what is damaged anew, and keeps what is whole"
    yield f"digest     {summary.digest}"


def beside(summary: StoreSummary) -> dict[str, str]:
    """What a store holds beside the frames and their points: image encoders, cameras, language, by title."""
    parts = {
        "vision": ", ".join(f"{name}: {n} tokens of {d}" for name, (n, d) in summary.vision.items()),
        "views": ", ".join(f"{name}: {h} x {w}" for name, (h, w) in summary.views.items()),
    }
    if (language := summary.language) is not None:
        cut = f"; {language.truncated} cut at {language.limit} tokens" if language.truncated else ""
        parts["language"] = (
            f"{language.instructions} distinct instructions, up to {language.tokens} tokens of {language.channels}{cut}"
        )
    return {title: text for title, text in parts.items() if text}


def _bars(histogram: Histogram) -> Iterator[str]:
    most = max(histogram.counts)
    edges = histogram.edges
    for low, high, count in zip(edges, edges[1:], histogram.counts, strict=False):
        if count:
            yield f"           {low:7.0f} – {high:7.0f}  {'█' * max(1, round(BAR * count / most))} {count}"
