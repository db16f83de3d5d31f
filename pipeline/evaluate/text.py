"""What `cla eval probe` prints for a person."""

from collections.abc import Iterator

from pipeline.evaluate.judge import SOURCES, Judgement
from pipeline.evaluate.score import Score


def judgement_lines(judgement: Judgement) -> Iterator[str]:
    """A table of the probes, then the codebook and the decoder."""
    run = judgement.run
    yield (
        f"{run['name']} ({run['recipe']}, step {run['step']:,}): {judgement.pairs_held_out:,} held-out pairs of "
        f"{judgement.clips_held_out:,} clips, {judgement.offset:g} s apart; probes fitted on {judgement.pairs_fit:,} "
        f"pairs of {judgement.clips_fit:,} clips"
    )
    yield f"{'NMSE (1 = the mean)':20} {'linear':8} {'95 %':16} {'mlp':8} {'95 %':16} information"
    for source in SOURCES:
        nats = judgement.probes[source].mutual_information.values()
        cells = " ".join(_cells(score) for score in (judgement.linear(source), judgement.mlp(source)))
        yield f"{source:20} {cells} {sum(nats) / len(nats):.2f} nats"
    yield "latent by dimension  " + "  ".join(
        f"{name} {value:.3f}" for name, value in judgement.linear("latent").by_dimension.items()
    )
    if judgement.left_out:
        yield f"left out             {', '.join(judgement.left_out)}: nothing moves there"
    usage = judgement.usage
    yield f"codes                {usage.used} of {len(usage.total)} used, perplexity {usage.perplexity:.1f}"
    low, high = judgement.decoder_ci95
    yield f"decoder              {judgement.decoder_vs_copy:.3f} of the error of copying ({low:.3f} to {high:.3f})"


def _cells(score: Score) -> str:
    low, high = score.ci95
    return f"{score.nmse:<8.3f} {f'{low:.3f} to {high:.3f}':16}"
