"""`cla demo`: simulated videos → features → a verified store → pages to open. The README's first command."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import FailedError, RequestError, override
from pipeline.extract.progress import reporter
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_html import write_page
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.recipes import extract_recipe
from pipeline.sim.record import record

MARK = ".cla-demo"
SEED = 1
SHOWN = ("WARNING", "content", "size", "tokens", "rejected", "verified", "digest")
"""Lines of the summary that the demo repeats; `cla inspect-shards` prints all of them."""


def run_demo(out: Path, *, clips: int) -> Iterator[str]:
    """Record, extract, verify and show, twice; yields what it did, line by line.

    `video` is the way of the mission: RGB video alone, geometry from a VGGT of the tiny size that was trained on this
    world. `depth` takes the simulator's depth and camera instead, so that its clouds are those of the scene.
    """
    start = time.perf_counter()
    _make_room(out)
    ways: list[tuple[str, str, Path | None, list[str]]] = [
        ("video", "ssv2", out / "videos", []),
        ("depth", "tabletop", None, ["geometry.source=sensor"]),
    ]
    yield f"recording {clips} videos of the tabletop world in Something-Something V2's format"
    record("ssv2", out / "videos", clips=clips, seed=SEED)
    for name, dataset, root, changes in ways:
        store, page = out / f"store-{name}", out / f"{name}.html"
        yield (
            f"extracting {store} (cla extract --dataset {dataset} --recipe tiny {' '.join(changes)})".rstrip(" )") + ")"
        )
        request = ExtractRequest(
            dataset=dataset,
            root=root,
            split=None,
            options={} if root else {"clips": str(clips), "seed": str(SEED)},
            limit=None,
            out=str(store),
            format="zarr",
            recipe=override(extract_recipe("tiny"), changes),
        )
        with reporter() as report:
            run_extract(request, report)
        summary = inspect_store(str(store), verify=True)
        if summary.damages:
            raise FailedError(f"{store} is damaged right after it was written: {summary.damages[0]}")
        write_page(str(store), summary, page)
        yield from (f"  {line}" for line in summary_lines(summary) if line.startswith(SHOWN))
    yield ""
    yield f"Done in {time.perf_counter() - start:.0f} s. Open these pages in a browser:"
    yield f"  {(out / 'depth.html').resolve()}   clouds from the simulator's depth"
    yield f"  {(out / 'video.html').resolve()}   clouds from RGB video through VGGT tiny"


def _make_room(out: Path) -> None:
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not empty and no earlier demo wrote it: name another --out.")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text("Written by `cla demo`, which may replace this folder.\n")
