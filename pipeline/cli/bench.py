"""`cla bench …`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.groups import Device, bench, print_lines, say
from pipeline.config import RequestError, override
from pipeline.recipes import EXTRACT, LAQ, VLA, extract_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable


@bench.command("extract", epilog="Example:  cla bench extract --recipe tiny --json-file bench.json")
def bench_extract(
    recipe: Annotated[str, typer.Option(help=f"{', '.join(EXTRACT)}.")] = "tiny",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    device: Device = "auto",
    clips: Annotated[int | None, typer.Option(min=1, help="Clips a batch; batch.clips without it.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time extraction beside the same models run frame by frame with both heads, as published."""
    from pipeline.bench.extract import bench_extract as measure

    chosen = override(extract_recipe(recipe), overrides or [])
    table = measure(chosen, device=device, clips=clips, frames=frames, rounds=rounds)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("store", epilog="Example:  cla bench store --json-file bench.json")
def bench_store(
    clips: Annotated[int, typer.Option(min=1, help="Clips of the measured store.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 7,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Speed of a store's readers beside a memory copy and other readers; its size by array."""
    from pipeline.bench.store import bench_store as measure

    table = measure(clips=clips, rounds=rounds)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("index", epilog="Example:  cla bench index --clips 10000000 --json-file bench.json")
def bench_index(
    clips: Annotated[int, typer.Option(min=1, help="Clips of the synthetic index.")] = 1_000_000,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 16,
    clips_a_shard: Annotated[int, typer.Option(min=1, help="Clips a shard.")] = 70,
    merge: Annotated[bool, typer.Option("--merge", help="Also `cla merge`, of some gigabytes of sidecars.")] = False,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time the opening of a store of very many clips, and its memory; writes a synthetic index first."""
    from pipeline.bench.index import bench_index as measure

    table = measure(clips=clips, frames=frames, clips_a_shard=clips_a_shard, merge=merge)
    _finish_bench(table.lines(), table.as_json(), json_file)


@bench.command("size", epilog="Example:  cla bench size --store stores/table --run runs/laq --json-file size.json")
def bench_size(
    store: Annotated[str | None, typer.Option(help="A store; generated films in three sizes without it.")] = None,
    run: Annotated[Path | None, typer.Option(help="A run of `cla train laq` for --store.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Generated films.")] = 1,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each.")] = 6,
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Bytes a frame by array beside a dense layout, raw and by zstd; what int8, no points and fewer frames lose."""
    from pipeline.bench.size import bench_size as measure

    table = measure(store=store, run=run, clips=clips, frames=frames)
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


@bench.command("policy", epilog="Example:  cla bench policy --size full --json-file bench.json; cla bench policy --all")
def bench_policy(
    recipe: Annotated[str, typer.Option(help=f"{', '.join(VLA)}; that of --size without it.")] = "",
    extraction: Annotated[str, typer.Option("--extract-recipe", help="As `cla extract --recipe`; see --size.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of both recipes.")] = None,
    size: Annotated[
        str, typer.Option(help="tiny: tabletop_vla_3d, rgbd_tiny. full: vla_3d, robot_full; random weights.")
    ] = "tiny",
    moments: Annotated[int | None, typer.Option(min=1, help="A batch; 32 (tiny), 4 (full), 8 (--all).")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    every: Annotated[bool, typer.Option("--all", help="A table of all recipes, on made-up moments.")] = False,
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time a policy's step on cached columns beside the same step with the frozen encoders in the loop."""
    if every:
        if recipe or extraction or overrides:
            raise RequestError("--all measures every recipe as it is: give no recipe and no overrides with it.")
        from pipeline.bench.policy_recipes import bench_policies

        table = bench_policies(moments=moments or 8, rounds=rounds, device=device)
    else:
        from pipeline.bench.policy import SIZES, choose_recipes
        from pipeline.bench.policy import bench_policy as measure

        learned, frozen = choose_recipes(size, recipe, extraction, overrides or [])
        count = moments or SIZES[size][2]
        table = measure(learned, frozen, size=size, moments=count, rounds=rounds, device=device)
    _finish_bench(table.lines(), table.as_json(), json_file)


def _finish_bench(lines: "Iterable[str]", figures: dict[str, Any], json_file: Path | None) -> None:
    print_lines(lines)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
        say(f"wrote {json_file}")
