"""`cla demo`: simulated videos → features → a verified store → latent actions, judged → a policy, acting → pages.

The README's first command.
"""

import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import FailedError, RequestError, override
from pipeline.devices import choose_device
from pipeline.evaluate.encoding import Encoder
from pipeline.evaluate.judge import judge
from pipeline.evaluate.policy.judge import JudgeRequest
from pipeline.evaluate.policy.judge import judge as judge_policy
from pipeline.evaluate.policy.judgement import Judgement
from pipeline.evaluate.policy.report import write_outputs
from pipeline.evaluate.policy.text import judgement_lines as policy_lines
from pipeline.evaluate.report import write_report
from pipeline.evaluate.text import judgement_lines
from pipeline.extract.progress import reporter
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_html import write_page
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.label import label
from pipeline.recipes import extract_recipe, laq_recipe, vla_recipe
from pipeline.sim.record import record
from pipeline.train.laq_command import run_laq
from pipeline.train.launch import TrainRequest
from pipeline.train.progress import reporter as train_reporter
from pipeline.train.vla_command import VlaSources, run_vla

MARK = ".cla-demo"
SEED = 1
CLIPS_A_VIDEO = 5
"""Clips that the latent actions are learned from, for each video of the other way."""

POLICY = "tabletop_vla_3d"
TASKS = "reach,pick"
"""What the policy learns well enough from so few demonstrations; pushing needs more (docs/policies.md)."""
FILMED = 2
"""Episodes of each task whose film is on the policy's page."""

SHOWN = ("WARNING", "content", "size", "tokens", "rejected", "verified", "digest")
"""Lines of the summary that the demo repeats; `cla inspect-shards` prints all of them."""


@dataclass(frozen=True, kw_only=True)
class DemoSizes:
    """How much of everything: simulated `clips` and training `steps` of the latent actions; demonstrations and steps of
    the policy, and `episodes` of each task that it then acts in.
    """

    clips: int
    steps: int
    policy_clips: int
    policy_steps: int
    episodes: int


def run_demo(out: Path, sizes: DemoSizes) -> Iterator[str]:
    """Record, extract, verify and show, thrice; train, label and judge; teach and let act; yields what it did by lines.

    `video` is the way of the mission: RGB video alone, geometry from a VGGT of the tiny size that was trained on this
    world. `depth` takes the simulator's depth and camera instead, of `CLIPS_A_VIDEO` times as many clips: from its
    store a latent action model learns, and is judged by the actions that it never saw. From `demonstrations` a policy
    learns to do what a sentence says, and then acts in episodes of seeds that it has not seen.
    """
    start = time.perf_counter()
    _make_room(out)
    yield f"recording {sizes.clips} videos of the tabletop world in Something-Something V2's format"
    record("ssv2", out / "videos", clips=sizes.clips, seed=SEED, workers=2)
    yield from _extract(out, "video", "ssv2", out / "videos", {}, "tiny", [])
    options = {"clips": str(CLIPS_A_VIDEO * sizes.clips), "seed": str(SEED)}
    yield from _extract(out, "depth", "tabletop", None, options, "tiny", ["geometry.source=sensor", "frames.max=16"])
    yield from _learn(out, sizes.steps)
    demonstrations = {"clips": str(sizes.policy_clips), "seed": str(SEED), "tasks": TASKS, "perturb": "1"}
    yield from _extract(out, "demonstrations", "tabletop", None, demonstrations, "rgbd_tiny", ["points.count=4096"])
    yield from _teach(out, sizes.policy_steps)
    judgement = yield from _act(out, sizes.episodes)
    yield ""
    yield f"Done in {time.perf_counter() - start:.0f} s. Open these pages in a browser:"
    yield f"  {(out / 'policy.html').resolve()}   a policy acts on instructions: films, success by task"
    yield f"  {(out / 'laq.html').resolve()}   latent actions: curves, codes, the probe"
    yield f"  {(out / 'depth.html').resolve()}   clouds from the simulator's depth"
    yield f"  {(out / 'video.html').resolve()}   clouds from RGB video through VGGT tiny"
    yield f"Success of the policy, {sizes.episodes} episodes a task, with 95 % intervals:"
    for score in judgement.scores:
        low, high = score.ci95
        yield f"  {score.task:6} {score.rate:4.0%}  ({low:.0%} to {high:.0%})"


def _extract(
    out: Path, name: str, dataset: str, root: Path | None, options: dict[str, str], recipe: str, changes: list[str]
) -> Iterator[str]:
    store, page = out / f"store-{name}", out / f"{name}.html"
    command = ["cla extract --dataset", dataset, "--recipe", recipe, *changes]
    yield f"extracting {store} ({' '.join(command + [f'dataset.{key}={value}' for key, value in options.items()])})"
    request = ExtractRequest(
        dataset=dataset,
        root=root,
        split=None,
        options=options,
        limit=None,
        out=str(store),
        format="zarr",
        recipe=override(extract_recipe(recipe), changes),
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


def _teach(out: Path, steps: int) -> Iterator[str]:
    run, store = out / "policy", str(out / "store-demonstrations")
    changes = [f"train.steps={steps}", f"train.warmup={min(100, steps)}", f"train.validate_every={steps}"]
    yield f"training {run} (cla train vla --recipe {POLICY} {' '.join(changes)})"
    recipe = override(vla_recipe(POLICY), [*changes, "train.workers=0"])
    with train_reporter() as report:
        summary = run_vla(recipe, VlaSources(stores=(store,)), TrainRequest(out=run), report)
    yield from (f"  {line}" for line in summary.lines() if line.startswith("action error"))


def _act(out: Path, episodes: int) -> Generator[str, None, Judgement]:
    yield f"acting (cla eval policy --run {out / 'policy'} --tasks {TASKS} --episodes {episodes} --html)"
    request = JudgeRequest(run=out / "policy", tasks=TASKS, episodes=episodes, films=min(FILMED, episodes))
    judgement = judge_policy(request)
    for _ in write_outputs(judgement, html=out / "policy.html", films=None):
        pass
    yield from (f"  {line}" for line in policy_lines(judgement))
    return judgement


def _make_room(out: Path) -> None:
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not empty and no earlier demo wrote it: name another --out.")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text("Written by `cla demo`, which may replace this folder.\n")
