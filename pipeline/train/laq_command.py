"""What `cla train laq` does with its arguments."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.config import RequestError, override
from pipeline.recipes import laq_recipe
from pipeline.store import open_store
from pipeline.store.damaged import open_checked
from pipeline.train.laq import LaqTask
from pipeline.train.laq_recipe import LaqRecipe
from pipeline.train.launch import TrainRequest, train
from pipeline.train.loop import TrainSummary
from pipeline.train.progress import Reporter
from pipeline.train.run import Run
from pipeline.train.shard_reading import with_order
from stages.laq import parameter_table

DEFAULT_RECIPE = "laq_full"


def choose_recipe(name: str, overrides: Sequence[str], *, resumed: Path | None) -> LaqRecipe:
    """The named recipe with overrides; without a name, that of the run to be resumed, else `laq_full`."""
    if name or resumed is None:
        return override(laq_recipe(name or DEFAULT_RECIPE), overrides)
    run = Run.open(resumed)
    recipe = run.typed_recipe
    if not isinstance(recipe, LaqRecipe):
        raise RequestError(f"The run at {resumed} is of task {run.task}, not laq: name another --out.")
    return override(recipe, overrides)


def run_laq(recipe: LaqRecipe, store: str, request: TrainRequest, report: Reporter) -> TrainSummary:
    """Train on a store; to resume, on the run's own store where none is named."""
    if not store and request.mode == "resume":
        store = str(Run.open(request.out).store["url"])
    if not store:
        raise RequestError("Missing --store: what to train on, a folder or URL that `cla extract` has written.")
    recipe = recipe.model_copy(update={"data": with_order(recipe.data, [store])})
    return train(LaqTask(recipe, open_checked(store, recipe.data)), request, report)


def parameter_lines(recipe: LaqRecipe, store: str) -> Iterator[str]:
    """The parameters of the recipe's model by part, beside those of the system's description."""
    if store:
        recipe = recipe.for_store(channels=open_store(store).manifest.sizes["C"])
    with torch.device("meta"):
        rows = parameter_table(LaqTask.model_of(recipe))
    yield f"{'part':18}{'parameters':>14}{'described':>14}  note"
    for row in rows:
        described = "" if row.described is None else f"{row.described / 1e6:.1f}M"
        yield f"{row.part:18}{row.parameters:14,}{described:>14}  {row.note}".rstrip()
