"""The command line: reads arguments, calls the rooms, prints. Heavy imports wait until a command needs them.

Exit codes: 0 done; 1 failed; 2 the request was wrong; 3 finished, but too many samples were bad; 130 interrupted.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from pipeline.config import FailedError, RequestError, override
from pipeline.recipes import EXTRACT, LAQ, extract_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.doctor import Finding

FAILED, WRONG_REQUEST, TOO_MANY_BAD, INTERRUPTED = 1, 2, 3, 130


class Answering(typer.core.TyperGroup):
    """A group that answers what a user can cause with a sentence and an exit code, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RequestError as error:
            _say(f"error: {error}")
            raise typer.Exit(WRONG_REQUEST) from None
        except FailedError as error:
            _say(f"error: {error}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            _say("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="cla",
    cls=Answering,
    help="Latent actions from video in 3D: extract frozen features once, then train from shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
sim = typer.Typer(
    help="The simulated tabletop world.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
evaluate = typer.Typer(
    help="Judge what a run has learned.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
bench = typer.Typer(help="Measure, print tables, write JSON.", no_args_is_help=True, rich_markup_mode=None)
train = typer.Typer(help="Train a model from a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(sim, name="sim")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="eval")
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")]


def main() -> None:
    """Entry point of the `cla` command."""
    signal.signal(signal.SIGTERM, _terminate)
    # Decoding processes share the cores with inference. Threads of OpenMP that wait by spinning take them away: with
    # one other busy process on two cores extraction ran ten times slower. Read when torch is loaded, hence here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@app.command(
    epilog="Example:  cla extract --dataset ssv2 --root /data/ssv2 --out s3://bucket/ssv2 --recipe full frames.fps=3"
)
def extract(
    dataset: Annotated[str, typer.Option(help="ssv2, video or tabletop.")],
    out: Annotated[str, typer.Option(help="The store: a new folder or fsspec URL.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the dataset's files are.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "full",
    split: Annotated[str | None, typer.Option(help="One split only; all without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N clips only.")] = None,
    store_format: Annotated[str, typer.Option("--format", help="zarr or webdataset.")] = "zarr",
    workers: Annotated[int, typer.Option(min=0, help="Decoding processes; 0: in this one.")] = 1,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the store.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store.")] = False,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="With --resume: try bad clips again.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run the frozen models over a dataset, once, into a store of shards.

    Overrides are dotted recipe keys (--print-config shows all), or dataset.OPTION=VALUE for the dataset.
    """
    assignments = overrides or []
    options = dict(a.removeprefix("dataset.").split("=", 1) for a in assignments if _is_dataset_option(a))
    chosen = override(extract_recipe(recipe), [a for a in assignments if not _is_dataset_option(a)])
    if print_config:
        _print_json(chosen.model_dump(mode="json"))
        return
    if not out:
        raise RequestError("Missing --out: where the store is to be, a new folder or fsspec URL.")
    if store_format not in ("zarr", "webdataset"):
        raise RequestError(f"--format {store_format} is unknown: expected zarr or webdataset.")
    if resume and overwrite:
        raise RequestError("--resume keeps what is there and --overwrite removes it: give one of them.")
    if retry_rejected and not resume:
        raise RequestError("--retry-rejected goes on with an existing store: give it together with --resume.")

    from pipeline.extract.progress import reporter
    from pipeline.extract.runner import ExtractRequest, run_extract

    request = ExtractRequest(
        dataset=dataset,
        root=root,
        split=split,
        options=options,
        limit=limit,
        out=out,
        format="zarr" if store_format == "zarr" else "webdataset",
        recipe=chosen,
        workers=workers,
        device=device,
        mode="resume" if resume else "overwrite" if overwrite else "new",
        retry_rejected=retry_rejected,
    )
    with reporter() as report:
        summary = run_extract(request, report)
    if as_json:
        _print_json(summary.as_json())
    else:
        _print_lines(summary.lines())
    if summary.too_many_bad:
        raise typer.Exit(TOO_MANY_BAD)


def _is_dataset_option(assignment: str) -> bool:
    return assignment.startswith("dataset.") and "=" in assignment


@app.command("inspect-shards", epilog="Example:  cla inspect-shards stores/ssv2 --verify --html ssv2.html")
def inspect_shards(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A folder or fsspec URL.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every checksum and rule.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write a Rerun recording (.rrd), with the [viz] extra.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a store holds, what it was made from, and whether it is whole. Exit code 1 if anything is damaged."""
    from pipeline.inspect_shards import inspect_store
    from pipeline.inspect_text import summary_lines

    summary = inspect_store(store, verify=verify)
    if html is not None:
        from pipeline.inspect_html import write_page

        write_page(store, summary, html)
        _say(f"wrote {html}")
    if rerun is not None:
        from pipeline.inspect_rerun import write_recording

        write_recording(store, rerun)
        _say(f"wrote {rerun}")
    if as_json:
        _print_json(summary.as_json())
    else:
        _print_lines(summary_lines(summary))
    if summary.damages or summary.unread:
        raise typer.Exit(FAILED)


@train.command("laq", epilog="Example:  cla train laq --store stores/ssv2 --out runs/laq train.batch=32")
def train_laq(
    store: Annotated[str, typer.Option(help="A store of `cla extract`; with --resume, the run's without it.")] = "",
    out: Annotated[Path | None, typer.Option(help="The run: a new folder.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(LAQ)}; laq_full, or with --resume the run's.")] = "",
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
    print_model: Annotated[bool, typer.Option("--print-model", help="Print the parameters and stop.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Learn latent actions from pairs of frames: 4 codes that say what happened between them.

    Several GPUs: torchrun --nproc-per-node 4 -m pipeline.cli train laq ...
    """
    if resume and overwrite:
        raise RequestError("--resume keeps what is there and --overwrite removes it: give one of them.")
    if out is None and (resume or not (print_model or print_config)):
        raise RequestError("Missing --out: where the run is to be, a new folder.")

    from pipeline.train.laq_command import choose_recipe, parameter_lines, run_laq

    chosen = choose_recipe(recipe, overrides or [], resumed=out if resume else None)
    if print_config:
        _print_json(chosen.model_dump(mode="json"))
        return
    if print_model:
        _print_lines(parameter_lines(chosen, store))
        return
    assert out is not None
    from pipeline.train.launch import TrainRequest
    from pipeline.train.progress import reporter

    request = TrainRequest(out=out, mode="resume" if resume else "overwrite" if overwrite else "new", device=device)
    with reporter() as report:
        summary = run_laq(chosen, store, request, report)
    if summary.main:
        _print_json(summary.as_json()) if as_json else _print_lines(summary.lines())


@train.command("tiny-frozen", epilog="Example:  cla train tiny-frozen --out runs/tiny --only concerto")
def train_tiny_frozen(
    out: Annotated[Path | None, typer.Option(help="A new folder: films, runs and weights.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    only: Annotated[str, typer.Option(help="concerto or vggt; both without it.")] = "",
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the runs; films are kept.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipes and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Make the weights that the package ships, Concerto tiny and VGGT tiny, from nothing but the simulator.

    Overrides begin with concerto. or vggt.; an hour or two on a CPU.
    """
    if resume and overwrite:
        raise RequestError("--resume keeps what is there and --overwrite removes it: give one of them.")
    from pipeline.train.frozen.command import MODELS, choose_recipe, run_tiny_frozen
    from pipeline.train.progress import reporter

    if only and only not in MODELS:
        raise RequestError(f"--only {only} is unknown: expected {' or '.join(MODELS)}.")
    recipe = choose_recipe(overrides or [])
    if print_config:
        _print_json(recipe.model_dump(mode="json"))
        return
    if out is None:
        raise RequestError("Missing --out: where films, runs and weights are to be, a new folder.")
    which = [model for model in MODELS if only in ("", model)]
    mode: Any = "resume" if resume else "overwrite" if overwrite else "new"
    with reporter() as report:
        summary = run_tiny_frozen(recipe, out, which, mode=mode, device=device, report=report)
    _print_json(summary.as_json()) if as_json else _print_lines(summary.lines())


@app.command(epilog="Example:  cla label --run runs/laq --store stores/ssv2 --out codes.parquet --embeddings")
def label(
    run: Annotated[Path, typer.Option(help="A run of `cla train laq`.")],
    store: Annotated[str, typer.Option(help="A folder or fsspec URL.")],
    out: Annotated[Path, typer.Option(help="The Parquet file: a row a pair.")],
    split: Annotated[str | None, typer.Option(help="One split only; all without it.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Keep the latents beside their codes.")] = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted labelling.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write the 4 codes of every pair of frames of a store, at the offset the run was trained with."""
    if resume and overwrite:
        raise RequestError("--resume keeps what is there and --overwrite removes it: give one of them.")
    from pipeline.devices import choose_device
    from pipeline.evaluate.encoding import Encoder
    from pipeline.label import label as write_labels

    encoder = Encoder.open(run, store, split=split, device=choose_device(device))
    mode: Any = "resume" if resume else "overwrite" if overwrite else "new"
    with _counting_bar("label") as progress:
        summary = write_labels(encoder, out, embeddings=embeddings, mode=mode, progress=progress)
    if as_json:
        _print_json(summary.as_json())
    else:
        _print_lines(summary.lines())


@evaluate.command("probe", epilog="Example:  cla eval probe --run runs/laq --store stores/tabletop --html laq.html")
def eval_probe(
    run: Annotated[Path, typer.Option(help="A run of `cla train laq`.")],
    store: Annotated[str, typer.Option(help="A store with actions: a folder or fsspec URL.")],
    html: Annotated[Path | None, typer.Option(help="Write the page of the run here.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture of codes against motion here.")] = None,
    max_pairs: Annotated[int, typer.Option(min=2, help="Pairs to fit from, and to judge by, at most.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the probes.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say how much of the true action the latents carry, on clips that the run was not trained on.

    NMSE 1.0 is predicting the mean. Probes: from quantised latents, codes, latents before quantisation, and, as a
    baseline, from frozen features; the decoder against copying the first frame; the codebook's use.
    """
    from pipeline.devices import choose_device
    from pipeline.evaluate.encoding import Encoder
    from pipeline.evaluate.judge import judge
    from pipeline.evaluate.report import check_out, write_report
    from pipeline.evaluate.text import judgement_lines

    for path, option in ((html, "--html"), (png, "--png")):
        if path is not None:
            check_out(path, option)
    encoder = Encoder.open(run, store, device=choose_device(device))
    with _counting_bar("encode") as progress:
        judged = judge(encoder, max_pairs=max_pairs, seed=seed, progress=progress)
    if html is not None or png is not None:
        write_report(encoder, judged, html=html, png=png)
        _say(f"wrote {', '.join(str(path) for path in (html, png) if path is not None)}")
    if as_json:
        _print_json(judged.judgement.as_json())
    else:
        _print_lines(judgement_lines(judged.judgement))


@sim.command("record", epilog="Example:  cla sim record --format ssv2 --clips 20 --seed 1 --out data/ssv2")
def sim_record(
    out: Annotated[Path, typer.Option(help="A new folder.")],
    data_format: Annotated[str, typer.Option("--format", help="ssv2 or rgbd.")] = "rgbd",
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other clips.")] = 0,
    tasks: Annotated[str, typer.Option(help="all, or names with commas: reach, push, pick, stack, place.")] = "all",
    view: Annotated[str, typer.Option(help="agent, wrist or agent,wrist (rgbd).")] = "agent",
    fps: Annotated[float | None, typer.Option(help="Frames a second, at most 20 (rgbd); 20 without it.")] = None,
    camera_motion: Annotated[bool, typer.Option("--camera-motion", help="The agent camera moves.")] = False,
    distractors: Annotated[bool, typer.Option("--distractors", help="Things move in view that take no part.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the bytes are the same.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
) -> None:
    """Write episodes of the tabletop world as a dataset's real files."""
    from pipeline.sim.record import record

    with _progress_bar("record", clips) as advance:
        try:
            record(
                data_format,
                out,
                clips=clips,
                seed=seed,
                tasks=tasks,
                views=[name.strip() for name in view.split(",")],
                fps=fps,
                camera_motion=camera_motion,
                distractors=distractors,
                workers=workers,
                overwrite=overwrite,
                progress=advance,
            )
        except ValueError as error:
            raise RequestError(str(error)) from None
    _say(f"wrote {clips} clips to {out}")


@app.command(epilog="Example:  cla doctor --json")
def doctor(
    folder: Annotated[Path, typer.Option(help="Where stores will be written.")] = Path(),
    as_json: Json = False,
) -> None:
    """Check versions, device, optional packages, weights and disk; every line is fine or names its remedy."""
    from pipeline.doctor import examine

    if not folder.is_dir():
        raise RequestError(f"--folder {folder} is not a folder: create it, or name one that is there.")
    findings = examine(folder)
    if as_json:
        _print_json({"findings": [finding.as_json() for finding in findings]})
    else:
        _print_lines(_doctor_lines(findings))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(FAILED)


def _doctor_lines(findings: "Iterable[Finding]") -> "Iterable[str]":
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    for finding in findings:
        yield f"{marks[finding.state]}  {finding.what:32} {finding.found}"
        if finding.remedy:
            yield f"      {'':32} -> {finding.remedy}"


@app.command(epilog="Example:  cla demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="A folder; what an earlier demo left in it is replaced.")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=4, help="Simulated videos; five times as many to learn from.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the latent action model.")] = 600,
) -> None:
    """Go from simulated videos to a verified store and judged latent actions, on a CPU, in minutes."""
    from pipeline.demo import run_demo

    _print_lines(run_demo(out, clips=clips, steps=steps))


@bench.command("extract", epilog="Example:  cla bench extract --recipe tiny --json-file bench.json")
def bench_extract(
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    device: Device = "auto",
    frames: Annotated[int, typer.Option(min=1, help="Frames a round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time the frozen models, stage by stage, on generated clips."""
    from pipeline.bench.extract import bench_extract as measure

    table = measure(override(extract_recipe(recipe), overrides or []), device=device, frames=frames, rounds=rounds)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("store", epilog="Example:  cla bench store --json-file bench.json")
def bench_store(
    clips: Annotated[int, typer.Option(min=1, help="Clips of the measured store.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Size of a store by array and speed of its readers, beside a memory copy and the dense layout."""
    from pipeline.bench.store import bench_store as measure

    table = measure(clips=clips, rounds=rounds)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("points", epilog="Example:  cla bench points --root data/ssv2 --recipe tiny")
def bench_points(
    dataset: Annotated[str, typer.Option(help="Which dataset's clips.")] = "tabletop",
    root: Annotated[Path | None, typer.Option(help="Where its files are.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "tiny",
    clips: Annotated[int, typer.Option(min=1, help="How many clips.")] = 6,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Count the coarse tokens N' a frame for every normalisation, scope, sampling and geometry."""
    from pipeline.bench.points import bench_points as measure

    table = measure(dataset, root=root, recipe=extract_recipe(recipe), clips=clips)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("geometry", epilog="Example:  cla bench geometry --recipe tiny --clips 20 --json-file bench.json")
def bench_geometry(
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "tiny",
    clips: Annotated[int, typer.Option(min=1, help="Films a camera.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulator.")] = 0,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Depth and camera errors of a recipe's VGGT against the simulator's: still, moving, wrist camera, and video."""
    from pipeline.bench.geometry import bench_geometry as measure

    table = measure(override(extract_recipe(recipe), overrides or []), clips=clips, seed=seed)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("s2d", epilog="Example:  cla bench s2d --tokens 500 --json-file bench.json")
def bench_s2d(
    tokens: Annotated[list[int] | None, typer.Option(help="N', repeatable; 100, 500 and 1800 without it.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Points a frame.")] = 8192,
    frames: Annotated[int, typer.Option(min=1, help="Frames a batch.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time S2D on the distinct tokens beside the same module on a key for every point."""
    from pipeline.bench.s2d import bench_s2d as measure

    table = measure(tokens=tokens or (100, 500, 1800), points=points, frames=frames, rounds=rounds, device=device)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("train", epilog="Example:  cla bench train --recipe laq_tiny --extract-recipe tiny --pairs 4")
def bench_train(
    recipe: Annotated[str, typer.Option(help=f"{', '.join(LAQ)}.")] = "laq_tiny",
    extraction: Annotated[str, typer.Option("--extract-recipe", help=f"{', '.join(EXTRACT)}.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of both recipes.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of frames a batch.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time a training step from the store beside the same step with the frozen models in the loop."""
    from pipeline.bench.train import bench_train as measure
    from pipeline.bench.train import choose_recipes

    learned, frozen = choose_recipes(recipe, extraction, overrides or [])
    table = measure(learned, frozen, pairs=pairs, rounds=rounds, device=device)
    _finish_bench(table.lines(), table.as_json(), json_file)


def _finish_bench(lines: "Iterable[str]", figures: dict[str, Any], json_file: Path | None) -> None:
    _print_lines(lines)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
        _say(f"wrote {json_file}")


def _progress_bar(title: str, total: int) -> Any:
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)

    return bar()


def _counting_bar(title: str) -> Any:
    """A progress bar for work that says itself how much there is: a context that gives `progress(done, total)`."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    return bar()


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _print_lines(lines: "Iterable[str]") -> None:
    for line in lines:
        sys.stdout.write(line + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
