"""`cla eval …`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import Device, Json, counting_bar, evaluate, print_json, print_lines, say
from pipeline.config import RequestError


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
    with counting_bar("encode") as progress:
        judged = judge(encoder, max_pairs=max_pairs, seed=seed, progress=progress)
    if html is not None or png is not None:
        write_report(encoder, judged, html=html, png=png)
        say(f"wrote {', '.join(str(path) for path in (html, png) if path is not None)}")
    if as_json:
        print_json(judged.judgement.as_json())
    else:
        print_lines(judgement_lines(judged.judgement))


@evaluate.command(
    "policy", epilog="Example:  cla eval policy --run runs/vla --env tabletop --episodes 100 --html policy.html"
)
def eval_policy(
    run: Annotated[Path | None, typer.Option(help="A run of `cla train vla`.")] = None,
    env: Annotated[str, typer.Option(help="tabletop; aloha or libero, with the [sim] extra.")] = "tabletop",
    tasks: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "",
    episodes: Annotated[int, typer.Option(min=1, help="Of each task.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other episodes.")] = 0,
    policy: Annotated[str, typer.Option(help="run; as references, expert or random.")] = "run",
    checkpoint: Annotated[str, typer.Option(help="best or last.")] = "best",
    execute: Annotated[str, typer.Option(help="chunk, or ensemble of all chunks (ACT).")] = "chunk",
    execute_steps: Annotated[int | None, typer.Option(min=1, help="Of a chunk, before the next look.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Cap of an episode.")] = None,
    render_size: Annotated[int | None, typer.Option(min=14, help="Pixels, in place of the dataset's.")] = None,
    camera: Annotated[str, typer.Option(help="tabletop: seen, unseen or moving.")] = "seen",
    distractors: Annotated[bool, typer.Option("--distractors", help="tabletop: things move in view.")] = False,
    open_loop: Annotated[bool, typer.Option("--open-loop", help="No simulator: the error on --store.")] = False,
    store: Annotated[str, typer.Option(help="With --open-loop: where.")] = "",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; 0: in this one; one a core.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with films here.")] = None,
    films: Annotated[Path | None, typer.Option(help="Write films (mp4) into this folder.")] = None,
    film_episodes: Annotated[int, typer.Option(min=1, help="Films of each task, with --html or --films.")] = 2,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Let a policy act: success by task with 95 % Wilson intervals, length, speed, films and a page."""
    from pipeline.evaluate.policy.report import check_outputs, write_open_loop, write_outputs

    check_outputs(html, films)
    if open_loop or store:
        if run is None or not store or not open_loop or policy != "run":
            raise RequestError("--open-loop measures a run on a store: give --run, --store and --open-loop together.")
        from pipeline.evaluate.policy.heldout import open_loop as measure_open_loop
        from pipeline.evaluate.policy.openloop_page import open_loop_lines

        with counting_bar("moments") as progress:
            found = measure_open_loop(run, store, checkpoint=checkpoint, device=device, seed=seed, progress=progress)
        for path in write_open_loop(found, html):
            say(f"wrote {path}")
        print_json(found.as_json()) if as_json else print_lines(open_loop_lines(found))
        return

    from pipeline.evaluate.policy.judge import JudgeRequest, judge
    from pipeline.evaluate.policy.text import judgement_lines

    request = JudgeRequest(
        environment=env,
        tasks=tasks,
        episodes=episodes,
        seed=seed,
        policy=policy,
        run=run,
        checkpoint=checkpoint,
        execute=execute,
        execute_steps=execute_steps,
        camera=camera,
        distractors=distractors,
        max_steps=max_steps,
        render_size=render_size,
        films=film_episodes if html is not None or films is not None else 0,
        workers=workers,
        device=device,
    )
    with counting_bar("episodes") as progress:
        judgement = judge(request, progress)
    for path in write_outputs(judgement, html=html, films=films):
        say(f"wrote {path}")
    print_json(judgement.as_json()) if as_json else print_lines(judgement_lines(judgement))
