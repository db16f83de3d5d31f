"""Every recipe of `cla train vla` on made-up moments of its real sizes: parameters, memory, samples/s.

A process a recipe, so that the greatest memory is its own. Weights, their gradients and the two moments of AdamW are 16
bytes a trained parameter, the moving average of some recipes 4 more; the rest is Python with torch (about 0.4 GB) and
activations. No frozen model runs: with cached columns none does.
"""

import resource
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from data_specs.batches import PolicyBatch
from pipeline.bench.table import Table, columns_of, interleaved
from pipeline.bench.training import Training
from pipeline.config import FailedError
from pipeline.devices import choose_device
from pipeline.processes import worker_pool
from pipeline.recipes import VLA, vla_recipe
from pipeline.train.optim import WeightAverage
from pipeline.train.policy_examples import ExampleMoments
from pipeline.train.vla import VlaTask
from stages.policy_table import parameter_table


def bench_policies(*, moments: int, rounds: int, device: str, names: tuple[str, ...] = VLA) -> Table:
    """A row a recipe, for batches of `moments`, in the precision of the recipe.

    Raises FailedError when a recipe's process dies, for want of memory for example.
    """
    place = choose_device(device)
    rows = [_in_a_process(name, moments, rounds, str(place)) for name in names]
    unknown = [f"frozen of {row['recipe']}: {note}" for row in rows if (note := row.pop("note"))]
    columns, values = columns_of(rows)
    return Table(
        title=f"cla bench policy --all: {place}, batches of {moments} made-up moments",
        columns=columns,
        rows=values,
        notes=(
            "samples/s: forward, backward, clipping, optimiser, moving average; moments in memory, nothing compiled",
            "peak memory: of a process of its own, Python and torch (about 0.4 GB) included",
            *unknown,
        ),
        figures={"moments": moments},
    )


def _in_a_process(name: str, moments: int, rounds: int, device: str) -> dict[str, Any]:
    with worker_pool(1) as pool:
        try:
            return pool.submit(measure_recipe, name, moments, rounds, device).result()
        except BrokenProcessPool:
            raise FailedError(
                f"The process that measured {name} died, most likely for want of memory: give fewer --moments."
            ) from None


def measure_recipe(name: str, moments: int, rounds: int, device: str) -> dict[str, Any]:
    """The row of a recipe, measured in this process."""
    place, recipe = torch.device(device), vla_recipe(name)
    rows = parameter_table(recipe.build_checked("meta"), recipe.encoders.behind())
    alone = recipe.train.model_copy(update={"batch": moments, "accumulate": 1, "workers": 0})
    recipe = recipe.model_copy(update={"train": alone})
    training: Training[PolicyBatch] = Training(VlaTask(recipe, ExampleMoments(recipe, small=False)), place)
    try:
        average = WeightAverage(training.module, recipe.train.ema) if recipe.train.ema else None

        def step() -> None:
            training.step()
            if average is not None:
                average.update()

        training.read()
        seconds = interleaved({"step": step}, rounds)["step"]
    finally:
        training.end()
    total = rows[-1]
    row: dict[str, Any] = {
        "recipe": name,
        "trained": total.trained,
        "frozen": total.frozen or 0,
        "batch of the recipe": vla_recipe(name).train.batch,
        "precision": recipe.train.precision,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "s/step": seconds,
        "samples/s": moments / seconds,
        "note": total.note,
    }
    if place.type == "cuda":
        row["device GB"] = torch.cuda.max_memory_allocated(place) / 1e9
    return row
