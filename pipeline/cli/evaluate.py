"""`cla eval …`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.groups import Device, Json, counting_bar, evaluate, print_json, print_lines, say


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
