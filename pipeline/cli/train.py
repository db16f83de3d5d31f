"""`cla train …`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import Device, Json, print_json, print_lines, run_mode, train
from pipeline.config import RequestError
from pipeline.recipes import LAQ, VLA


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
    mode = run_mode(resume, overwrite)
    if out is None and (resume or not (print_model or print_config)):
        raise RequestError("Missing --out: where the run is to be, a new folder.")

    from pipeline.train.laq_command import choose_recipe, parameter_lines, run_laq

    chosen = choose_recipe(recipe, overrides or [], resumed=out if resume else None)
    if print_config:
        print_json(chosen.model_dump(mode="json"))
        return
    if print_model:
        print_lines(parameter_lines(chosen, store))
        return
    assert out is not None
    from pipeline.train.launch import TrainRequest
    from pipeline.train.progress import reporter

    request = TrainRequest(out=out, mode=mode, device=device)
    with reporter() as report:
        summary = run_laq(chosen, store, request, report)
    if summary.main:
        print_json(summary.as_json()) if as_json else print_lines(summary.lines())


@train.command("vla", epilog="Example:  cla train vla --store stores/libero --out runs/vla --recipe vla_3d")
def train_vla(
    store: Annotated[list[str] | None, typer.Option(help="Repeatable; with --resume, the run's without it.")] = None,
    weight: Annotated[list[float] | None, typer.Option(help="A share for each --store.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run: a new folder.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe overrides.")] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(VLA)}; vla_3d, or with --resume the run's.")] = "",
    codes: Annotated[
        list[Path] | None, typer.Option(help="Of `cla label`, one a store; for labels.pseudo with --embeddings.")
    ] = None,
    init_from: Annotated[Path | None, typer.Option(help="A run of `cla train vla` whose trunk to start from.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Made-up data: does the recipe run here?")] = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.")] = False,
    print_model: Annotated[bool, typer.Option("--print-model", help="Print the parameters and stop.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Learn a policy from demonstrations: actions, or with objective=latent the codes of `cla label`. With
    labels.pseudo=true clips without labels have the actions that their codes tell.

    Several GPUs: torchrun --nproc-per-node 4 -m pipeline.cli train vla ...
    """
    mode = run_mode(resume, overwrite)
    if out is None and (resume or not (print_model or print_config)):
        raise RequestError("Missing --out: where the run is to be, a new folder.")

    from pipeline.train.vla_command import VlaSources, choose_recipe, parameter_lines, run_vla

    chosen = choose_recipe(recipe, overrides or [], weights=weight or (), resumed=out if resume else None)
    if print_config:
        print_json(chosen.model_dump(mode="json"))
        return
    sources = VlaSources(stores=tuple(store or ()), codes=tuple(codes or ()), init_from=init_from, example=example)
    if print_model:
        print_lines(parameter_lines(chosen, sources))
        return
    assert out is not None
    from pipeline.train.launch import TrainRequest
    from pipeline.train.progress import reporter

    request = TrainRequest(out=out, mode=mode, device=device)
    with reporter() as report:
        summary = run_vla(chosen, sources, request, report)
    if summary.main:
        print_json(summary.as_json()) if as_json else print_lines(summary.lines())


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
    mode = run_mode(resume, overwrite)
    from pipeline.train.frozen.command import MODELS, choose_recipe, run_tiny_frozen
    from pipeline.train.progress import reporter

    if only and only not in MODELS:
        raise RequestError(f"--only {only} is unknown: expected {' or '.join(MODELS)}.")
    recipe = choose_recipe(overrides or [])
    if print_config:
        print_json(recipe.model_dump(mode="json"))
        return
    if out is None:
        raise RequestError("Missing --out: where films, runs and weights are to be, a new folder.")
    which = [model for model in MODELS if only in ("", model)]
    with reporter() as report:
        summary = run_tiny_frozen(recipe, out, which, mode=mode, device=device, report=report)
    print_json(summary.as_json()) if as_json else print_lines(summary.lines())
