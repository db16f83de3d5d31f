"""How busy extraction keeps a device: VGGT, Concerto and the whole beside the same models run frame by frame.

Side by side, in rounds that take turns: the published way (every frame by itself, with VGGT's point head, no packing)
and ours by the recipe. Beside the times: operations over the rate of a matrix product in the same dtype, peak memory,
and the share of the time in which the device is busy.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from data_specs.records import BadClip, Clip
from pipeline.bench.rates import copy_rate, counting, matrix_rate
from pipeline.bench.rounding import in_float32, rounding
from pipeline.bench.table import Table, columns_of
from pipeline.bench.training import wait
from pipeline.config import BatchSection, ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.clouds import CloudEncoder, single_frame
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import CLOUD, FrozenModels, load_models
from pipeline.sources import open_source
from stages.vggt import VGGTEncoder

PUBLISHED_CPU_S = {"VGGT": 3.5, "points and Concerto": 1.2, "whole": 4.7}
"""Seconds a frame that were quoted for the authors' code on two cores; only comparable with `full`."""

STREAMED = 4
"""Batches one after the other that tell how busy the device is."""

VGGT, CONCERTO, PACKING, WHOLE = "VGGT", "points and Concerto", "packing", "whole"


class _Clock:
    """Wall and processor seconds of named parts, each waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, tuple[float, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter(), time.process_time()
        yield
        wait(self.device)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        before = self.spent.get(name, (0.0, 0.0))
        self.spent[name] = (before[0] + wall, before[1] + cpu)


@dataclass(frozen=True)
class _Side:
    """One way to run the models: `run` with a clock that it names its parts to."""

    run: Callable[[_Clock], Any]
    dtype: torch.dtype


_BUSY = "clips in memory; on CUDA between events around what is queued, on a CPU the mapper's time over the wall's"


def bench_extract(recipe: ExtractRecipe, *, device: str, clips: int | None, frames: int, rounds: int) -> Table:
    """Medians of both ways over `rounds` rounds, a batch of `clips` clips (as `batch.clips` says, without it).

    RequestError for a recipe without VGGT, or one that no frame of the tabletop world fits.
    """
    if recipe.geometry.source == "sensor":
        raise RequestError(f"Recipe {recipe.name} lifts by sensors: name one with geometry.source=vggt or vggt_window.")
    place = choose_device(device)
    batch = _clips(recipe, clips or recipe.batch.clips, frames)
    recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"clips": len(batch)})})
    models = load_models(recipe, place, parts={CLOUD})
    mapper = Mapper(recipe, models)
    exact = in_float32(recipe)
    error = None
    published = _published(recipe, models)
    if exact != recipe:
        exact_models = load_models(exact, place, parts={CLOUD})
        error = rounding(recipe, models, exact_models, batch[:1])
        if place.type == "cpu":  # where the authors' code knows no other; on CUDA it has autocast, too
            published = _published(exact, exact_models)
        del exact_models
    sides = {"published": _frame_by_frame(published, batch), "ours": _by_recipe(mapper, batch)}
    total = sum(len(clip) for clip in batch)

    operations: dict[str, dict[str, float]] = {}
    peaks: dict[str, float] = {}
    for name, side in sides.items():  # the warm-up, too
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        counter = _Counter(place)
        side.run(counter)
        operations[name] = counter.gflop
        if place.type == "cuda":
            peaks[name] = torch.cuda.max_memory_allocated(place) / 1e9
    taken: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in sides}
    rates: dict[torch.dtype, list[float]] = {side.dtype: [] for side in sides.values()}
    for _ in range(rounds):
        for name, side in sides.items():
            clock = _Clock(place)
            side.run(clock)
            taken[name].append(clock.spent)
        for dtype, found in rates.items():  # in turns with the rest: on a shared machine it wanders
            found.append(matrix_rate(place, dtype))
    streamed = _stream(mapper, batch, place)
    figures = _Figures(
        taken=taken,
        operations=operations,
        rates={name: statistics.median(rates[side.dtype]) for name, side in sides.items()},
        frames=total,
    )
    rows = figures.rows(streamed if place.type == "cuda" else None)
    if recipe.vggt.model == "vggt_1b" and recipe.concerto.model == "base" and place.type == "cpu":
        for row in rows:
            row["quoted s/frame"] = PUBLISHED_CPU_S.get(row["what"], "")
    columns, values = columns_of(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    memory = [f"peak memory {peak:.1f} GB"] + [f"of the device {gb:.1f} GB ({name})" for name, gb in peaks.items()]
    dtypes = {name: str(side.dtype).removeprefix("torch.") for name, side in sides.items()}
    return Table(
        title=f"cla bench extract: recipe {recipe.name} on {place}",
        columns=columns,
        rows=values,
        notes=(
            *_notes(recipe, models, batch, dtypes, figures.rates, streamed, copy_rate(place)),
            ", ".join(memory),
            *(error.lines() if error is not None else ()),
        ),
        figures={
            "frames": total,
            "rounds": taken,
            "gflop_a_frame": {name: {k: v / total for k, v in parts.items()} for name, parts in operations.items()},
            "gflop_s_of_products": figures.rates,
            "dtype": dtypes,
            "busy_share": streamed.busy_s / streamed.wall_s,
            "bfloat16_error": None if error is None else asdict(error),
            "peak_rss_gb": peak,
            "peak_device_gb": peaks,
            "recipe": recipe.model_dump(mode="json"),
        },
    )


@dataclass(frozen=True)
class _Streamed:
    frames: int
    wall_s: float
    busy_s: float


@dataclass(frozen=True)
class _Figures:
    """Seconds of each part of each round, (wall, processor); operations of each part; GFLOP/s of a product."""

    taken: dict[str, list[dict[str, tuple[float, float]]]]
    operations: dict[str, dict[str, float]]
    rates: dict[str, float]
    frames: int

    def median(self, side: str, parts: Sequence[str], clock: int = 0) -> float:
        """Seconds a frame of some parts together."""
        sums = [sum(spent[part][clock] for part in parts if part in spent) for spent in self.taken[side]]
        return statistics.median(sums) / self.frames

    def ratio(self, parts: Sequence[str], clock: int = 0) -> float:
        """How many times faster we are: the median over the rounds, both sides of a round measured side by side."""
        pairs = zip(self.taken["published"], self.taken["ours"], strict=True)
        return statistics.median(
            sum(a[part][clock] for part in parts if part in a) / sum(b[part][clock] for part in parts if part in b)
            for a, b in pairs
        )

    def rows(self, streamed: _Streamed | None) -> list[dict[str, Any]]:
        """A row a part; on a GPU the whole is what a stream of batches takes, with everything overlapping."""
        rows: list[dict[str, Any]] = []
        for name, parts in ((VGGT, [VGGT]), (CONCERTO, [CONCERTO]), (WHOLE, [VGGT, CONCERTO, PACKING])):
            ours, theirs = self.median("ours", parts), self.median("published", parts)
            ratio = self.ratio(parts)
            if name == WHOLE and streamed is not None:
                ours = streamed.wall_s / streamed.frames
                ratio = theirs / ours
            operations = sum(self.operations["ours"].get(part, 0.0) for part in parts) / self.frames
            rows.append(
                {
                    "what": name,
                    "frames/s": 1 / ours,
                    "s/frame": ours,
                    "published s/frame": theirs,
                    "times faster": ratio,
                    "by processor time": self.ratio(parts, clock=1),
                    "GFLOP/frame": operations,
                    "share of the product's rate": operations / ours / self.rates["ours"],
                }
            )
        return rows


def _clips(recipe: ExtractRecipe, count: int, frames: int) -> list[Clip]:
    source = open_source("tabletop", None, None, {"clips": str(count), "seed": "0"})
    sampling = recipe.frames.model_copy(update={"fps": None, "stride": 1, "max": frames, "min": frames})
    try:
        return [source.read(ref, sampling) for ref in source.clips()]
    except BadClip as error:
        raise RequestError(f"No clip of the tabletop world has {frames} frames ({error}): give fewer.") from None


def _published(recipe: ExtractRecipe, models: FrozenModels) -> CloudEncoder:
    """Every frame by itself, both heads."""
    alone = recipe.model_copy(
        update={
            "geometry": recipe.geometry.model_copy(update={"source": "vggt"}),
            "points": recipe.points.model_copy(update={"per": "frame"}),
            "batch": BatchSection(clips=1, frames=1, clouds=1),
        }
    )
    assert models.vggt is not None, "checked by bench_extract"
    vggt = models.vggt.vggt
    heads = VGGTEncoder(vggt, point_source="depth" if vggt.point_head is None else "head")
    return CloudEncoder(alone, replace(models, vggt=heads))


def _frame_by_frame(encoder: CloudEncoder, batch: Sequence[Clip]) -> _Side:
    frames = [single_frame(clip, i) for clip in batch for i in range(len(clip))]

    @torch.inference_mode()
    def run(clock: _Clock) -> None:
        for frame in frames:
            with clock.part(VGGT):
                started = encoder.start([frame])
            with clock.part(CONCERTO):
                encoder.encode(started)

    return _Side(run, torch.bfloat16 if encoder.recipe.vggt.dtype == "bfloat16" else torch.float32)


def _by_recipe(mapper: Mapper, batch: Sequence[Clip]) -> _Side:
    @torch.inference_mode()
    def run(clock: _Clock) -> None:
        with clock.part(VGGT):
            begun = mapper.begin(batch)
        with clock.part(CONCERTO):
            fetched = mapper.encode(begun)
        with clock.part(PACKING):
            outcomes = mapper.pack_all(fetched)
        for outcome in outcomes:
            if isinstance(outcome, BadClip):
                raise RequestError(f"The recipe rejects a clip of the tabletop world: {outcome}.")

    return _Side(run, torch.bfloat16 if mapper.recipe.vggt.dtype == "bfloat16" else torch.float32)


class _Counter(_Clock):
    """Counts the operations of each part, GFLOP."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.gflop: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with counting() as told:
            yield
            self.gflop[name] = self.gflop.get(name, 0.0) + told()


def _stream(mapper: Mapper, batch: Sequence[Clip], place: torch.device) -> _Streamed:
    """Batches one after the other, as in an extraction that reads fast enough."""
    wait(place)
    busy, start = mapper.seconds(), time.perf_counter()
    count = STREAMED if place.type == "cuda" else 1
    for _ in mapper.stream([batch] * count):
        pass
    wait(place)
    wall = time.perf_counter() - start
    frames = count * sum(len(clip) for clip in batch)
    return _Streamed(frames=frames, wall_s=wall, busy_s=mapper.seconds() - busy)


def _notes(
    recipe: ExtractRecipe,
    models: FrozenModels,
    batch: Sequence[Clip],
    dtypes: dict[str, str],
    rates: dict[str, float],
    streamed: _Streamed,
    copied: float,
) -> Iterator[str]:
    sizes = recipe.batch
    yield (
        f"batches of {len(batch)} clips of {len(batch[0])} frames; {sizes.frames} frames together in VGGT, "
        f"{sizes.clouds} in Concerto; geometry.source={recipe.geometry.source}"
    )
    yield f"ours in {dtypes['ours']}; published: frame by frame, point head and all, in {dtypes['published']}"
    yield (
        "products run at "
        + ", ".join(f"{rate:,.0f} GFLOP/s ({dtypes[name]})" for name, rate in rates.items())
        + f"; memory is copied at {copied:.0f} GB/s"
    )
    yield f"the device is busy {streamed.busy_s / streamed.wall_s:.0%} of {streamed.wall_s:.2f} s ({_BUSY})"
    if any(record.random for record in models.records):
        yield "random weights: times are those of trained ones, features are not"
