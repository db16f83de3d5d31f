"""`cla demo`: simulated videos → features → a verified store → latent actions, judged → pages to open.

The README's first command.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import FailedError, RequestError, override
from pipeline.devices import choose_device
from pipeline.evaluate.encoding import Encoder
from pipeline.evaluate.judge import judge
from pipeline.evaluate.report import write_report
from pipeline.evaluate.text import judgement_lines
from pipeline.extract.progress import reporter
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_html import write_page
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.label import label
from pipeline.recipes import extract_recipe, laq_recipe
from pipeline.sim.record import record
from pipeline.train.laq_command import run_laq
from pipeline.train.launch import TrainRequest
from pipeline.train.progress import reporter as train_reporter

MARK = ".cla-demo"
SEED = 1
CLIPS_A_VIDEO = 5
"""Clips that the latent actions are learned from, for each video of the other way."""

SHOWN = ("WARNING", "content", "size", "tokens", "rejected", "verified", "digest")
"""Lines of the summary that the demo repeats; `cla inspect-shards` prints all of them."""


def run_demo(out: Path, *, clips: int, steps: int) -> Iterator[str]:
    """Record, extract, verify and show, twice; then train, label and judge; yields what it did, line by line.

    `video` is the way of the mission: RGB video alone, geometry from a VGGT of the tiny size that was trained on this
    world. `depth` takes the simulator's depth and camera instead, of `CLIPS_A_VIDEO` times as many clips: from its
    store a latent action model learns for `steps` steps, and is judged by the actions that it never saw.
    """
    start = time.perf_counter()
    _make_room(out)
    yield f"recording {clips} videos of the tabletop world in Something-Something V2's format"
    record("ssv2", out / "videos", clips=clips, seed=SEED)
    yield from _extract(out, "video", "ssv2", out / "videos", {}, [])
    options = {"clips": str(CLIPS_A_VIDEO * clips), "seed": str(SEED)}
    yield from _extract(out, "depth", "tabletop", None, options, ["geometry.source=sensor", "frames.max=16"])
    yield from _learn(out, steps)
    yield ""
    yield f"Done in {time.perf_counter() - start:.0f} s. Open these pages in a browser:"
    yield f"  {(out / 'laq.html').resolve()}   latent actions: curves, codes, the probe"
    yield f"  {(out / 'depth.html').resolve()}   clouds from the simulator's depth"
    yield f"  {(out / 'video.html').resolve()}   clouds from RGB video through VGGT tiny"


def _extract(
    out: Path, name: str, dataset: str, root: Path | None, options: dict[str, str], changes: list[str]
) -> Iterator[str]:
    store, page = out / f"store-{name}", out / f"{name}.html"
    yield f"extracting {store} ({' '.join(['cla extract --dataset', dataset, '--recipe tiny', *changes])})"
    request = ExtractRequest(
        dataset=dataset,
        root=root,
        split=None,
        options=options,
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


def _learn(out: Path, steps: int) -> Iterator[str]:
    store, run, codes = str(out / "store-depth"), out / "run", out / "codes.parquet"
    yield f"training {run} (cla train laq --recipe laq_tiny train.steps={steps})"
    recipe = override(laq_recipe("laq_tiny"), [f"train.steps={steps}"])
    with train_reporter() as report:
        run_laq(recipe, store, TrainRequest(out=run), report)
    encoder = Encoder.open(run, store, device=choose_device("auto"))
    yield f"labelling {codes} (cla label)"
    yield from (f"  {line}" for line in label(encoder, codes).lines())
    yield "judging (cla eval probe)"
    judged = judge(encoder)
    write_report(encoder, judged, html=out / "laq.html", png=None)
    yield from (f"  {line}" for line in judgement_lines(judged.judgement))


def _make_room(out: Path) -> None:
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not empty and no earlier demo wrote it: name another --out.")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text("Written by `cla demo`, which may replace this folder.\n")
