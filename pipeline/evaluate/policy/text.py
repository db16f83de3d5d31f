"""What `cla eval policy` prints for a person."""

from collections.abc import Iterator

from pipeline.evaluate.policy.judgement import Judgement


def judgement_lines(judgement: Judgement) -> Iterator[str]:
    """A table of the tasks, and how long it took."""
    settings = judgement.settings
    yield (
        f"{judgement.policy['name']} in {settings['environment']}: {settings['episodes']} episodes a task, "
        f"seed {settings['seed']}, camera {settings['camera']}{', distractors' if settings['distractors'] else ''}"
    )
    yield f"{'task':28} {'success':>8}  {'95 %':15} {'mean length':>11}"
    for score in judgement.scores:
        low, high = score.ci95
        interval = f"{low:.1%} to {high:.1%}"
        yield f"{score.task[:28]:28} {score.rate:>8.1%}  {interval:15} {score.mean_length:>8.1f} steps"
    if len(judgement.scores) > 1:
        yield f"{'mean':28} {judgement.mean_success:>8.1%}"
    yield f"{judgement.steps_per_s:.1f} steps/s over {judgement.seconds:.1f} s"
    for warning in judgement.warnings:
        yield f"warning: {warning}"
