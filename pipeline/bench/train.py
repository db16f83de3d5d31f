"""What the store saves: a training step that reads it, beside the same step with the frozen models in the loop.

Both are made of three parts, which take turns: reading a batch from the store, the trained step (forward, backward,
clipping, optimiser), and the frozen models on the frames of the same pairs, decoded already. A step from the store is
the first two, a step with the frozen models in the loop the last two. Extraction sends a clip through the very same
calls (`pipeline.extract.mapper`), so here, where a clip is a pair, what it costs once is what the loop pays every time.
"""

import resource
import tempfile
from collections.abc import Sequence
from typing import Any

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip, ClipRecord
from pipeline.bench.recipes import override_both
from pipeline.bench.store import write_store
from pipeline.bench.table import Table, columns_of, interleaved
from pipeline.bench.training import Training, wait
from pipeline.config import ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.runner import ExtractRequest, manifest_of
from pipeline.recipes import extract_recipe, laq_recipe
from pipeline.sources import open_source
from pipeline.store import open_store
from pipeline.train.laq import LaqTask
from pipeline.train.laq_recipe import LaqRecipe

LONG_TASK = "place"
"""Demonstrations of this task last over 4 s: long enough for the offset of every recipe."""


def choose_recipes(laq: str, extraction: str, overrides: Sequence[str]) -> tuple[LaqRecipe, ExtractRecipe]:
    """Both recipes by name; an override is the extraction's unless only the other recipe has its section."""
    return override_both(laq_recipe(laq), extract_recipe(extraction), overrides)


def bench_train(recipe: LaqRecipe, extraction: ExtractRecipe, *, pairs: int, rounds: int, device: str) -> Table:
    """Median seconds of reading, of the trained step and of the frozen models, for a batch of `pairs`; and the ratio.

    The pairs are from the tabletop world, at the offset of the recipe. Nothing is compiled, and no process reads
    ahead: reading counts in full. RequestError when the demonstrations have no such pairs.
    """
    place = choose_device(device)
    request = _request(recipe, extraction, pairs)
    source = open_source(request.dataset, request.root, request.split, request.options)
    refs = source.clips()[:pairs]
    try:
        clips = [source.read(ref, request.recipe.frames) for ref in refs]
    except BadClip as error:
        raise RequestError(f"No pair at pairs.offset={recipe.pairs.offset:g} ({error}): set a smaller one.") from None
    models = load_models(request.recipe, place)
    mapper = Mapper(request.recipe, models)

    def frozen() -> list[ClipRecord]:
        records = [mapper(clip) for clip in clips]
        wait(place)
        return records

    with tempfile.TemporaryDirectory(prefix="cla-bench-") as folder:
        records = frozen()  # also the warm-up
        write_store(f"{folder}/store", records, manifest_of(request, source, refs, models))
        training = Training(LaqTask(_alone(recipe, pairs), open_store(f"{folder}/store")), place)
        try:
            training.read()
            training.step()
            parts = {"read": training.read, "step": training.step, "frozen": frozen}
            seconds = interleaved(parts, rounds, warmup=0)
        finally:
            training.end()
    tokens = sum(len(record.tokens.feat) for record in records) / sum(len(record) for record in records)
    notes = [
        f"{training.parameters / 1e6:.1f}M trained parameters in {recipe.train.precision}, {tokens:.0f} tokens a frame",
        f"VGGT {extraction.vggt.model} in {extraction.vggt.dtype}, geometry.source={extraction.geometry.source}, "
        f"Concerto {extraction.concerto.model} in {extraction.concerto.dtype}, a pair at a time, as in extraction",
    ]
    if any(record.random for record in models.records):
        notes.append("random weights: times are those of trained ones, features are not")
    recipes = {"laq": recipe.model_dump(mode="json"), "extract": request.recipe.model_dump(mode="json")}
    return _table(f"{recipe.name} on features of {extraction.name}, {place}", seconds, pairs, notes, recipes)


def _table(title: str, seconds: dict[str, float], pairs: int, notes: list[str], recipes: dict[str, Any]) -> Table:
    stored, looped = seconds["read"] + seconds["step"], seconds["frozen"] + seconds["step"]
    named = {
        "read a batch from the store": seconds["read"],
        "trained step": seconds["step"],
        "frozen models": seconds["frozen"],
        "step from the store": stored,
        "step with the frozen models in the loop": looped,
    }
    columns, values = columns_of([{"what": what, "s": s, "s/pair": s / pairs} for what, s in named.items()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return Table(
        title=f"cla bench train: {title}, a batch of {pairs}",
        columns=columns,
        rows=values,
        notes=(f"from the store a step is {looped / stored:.1f} times faster", *notes, f"peak memory {peak:.1f} GB"),
        figures={"ratio": looped / stored, "seconds": seconds, "pairs": pairs, "peak_rss_gb": peak, "recipes": recipes},
    )


def _request(recipe: LaqRecipe, extraction: ExtractRecipe, pairs: int) -> ExtractRequest:
    """What extracts clips that are a pair each: two frames, as far apart as the recipe asks for."""
    sampling = FrameSampling(fps=1 / recipe.pairs.offset, max=2, min=2, size=extraction.frames.size)
    return ExtractRequest(
        dataset="tabletop",
        root=None,
        split="train",  # with clips of two splits, training would hold some of them out
        options={"clips": str(2 * pairs), "seed": "0", "tasks": LONG_TASK},
        limit=pairs,
        out="",
        format="zarr",
        recipe=extraction.model_copy(update={"frames": sampling}),
    )


def _alone(recipe: LaqRecipe, pairs: int) -> LaqRecipe:
    """The recipe on a store that holds one batch: nothing held out, codes that need no samples, no other process."""
    train = recipe.train.model_copy(update={"batch": pairs, "accumulate": 1, "workers": 0})
    split = recipe.split.model_copy(update={"validation": 0.0})
    codebook = recipe.codebook.model_copy(update={"init": "random", "init_samples": pairs})
    return recipe.model_copy(update={"train": train, "split": split, "codebook": codebook})
