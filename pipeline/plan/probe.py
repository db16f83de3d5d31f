"""A short measured run of a recipe's own models on one clip: frames a second, tokens and bytes a frame."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from data_specs.arrays import Array
from data_specs.records import BadClip, Clip, ClipRecord
from data_specs.shards import DatasetRecord, Format, Manifest
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.devices import choose_device
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import FrozenModels, load_models
from pipeline.plan.sizes import written_bytes
from pipeline.sources import open_source

WARM_UP = 2
"""Frames of a clip in the first pass, which is not counted but says how many frames there is time for."""

OVERLAP = 4
"""Batches that a GPU is given at least, so that their work can overlap."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured: the rate on `device` of batches of `clips` clips of `frames` frames each, as extraction maps
    them; `tokens` N' and `bytes` a frame.

    `random_models` had random weights, so that the rate holds and N' may not.
    """

    frames_per_s: float
    frames: int
    clips: int
    device: str
    tokens: float
    bytes: dict[str, float]
    random_models: tuple[str, ...]


def run_probe(recipe: ExtractRecipe, clip: Clip, *, form: Format, device: str, seconds: float) -> Probe:
    """Map batches of `clip`, as large as the recipe has them or as there is time for, until `seconds` are spent.

    Raises RequestError for a clip that the recipe cannot use.
    """
    place = choose_device(device)
    recipe, models = models_for_probe(recipe, place)
    mapper = Mapper(recipe, models)
    short = [first_frames(clip, WARM_UP)] * recipe.batch.clips
    warm = _Stream(mapper, short, 0.0)
    if place.type == "cuda":  # kernels are chosen and compiled in the first pass
        warm = _Stream(mapper, short, 0.0)
    batch = batch_of(clip, recipe.batch.clips, room=int(seconds * warm.frames_per_s))
    found = _Stream(mapper, batch, seconds)
    record = found.record
    sizes = {"C": models.channels, "P": recipe.points.count if recipe.store.points else 0, "W": recipe.frames.size}
    for name, array in (("S", record.state), ("A", record.action)):
        if array is not None:
            sizes[name] = array.shape[1]
    manifest = Manifest(format=form, dataset=DatasetRecord(name="plan"), models=models.records, sizes=sizes)
    return Probe(
        frames_per_s=found.frames_per_s,
        frames=len(record),
        clips=len(batch),
        device=device_name(place),
        tokens=len(record.tokens.feat) / len(record),
        bytes=written_bytes(record, manifest),
        random_models=tuple(f"{model.role} ({model.name})" for model in models.records if model.random),
    )


class _Stream:
    """Batches one after the other through a mapper, for about `seconds`; on a GPU they overlap, as in an extraction."""

    def __init__(self, mapper: Mapper, batch: Sequence[Clip], seconds: float) -> None:
        self._start, self._given = time.perf_counter(), 0
        self._least = OVERLAP if mapper.lanes.cuda and seconds else 1
        self._seconds = seconds
        outcomes = [outcome for done in mapper.stream(self._batches(batch)) for outcome in done]
        mapper.lanes.wait()
        spent = time.perf_counter() - self._start
        for outcome in outcomes:
            if isinstance(outcome, BadClip):
                raise RequestError(f"The clip to measure with cannot be used: {outcome}.")
            self.record: ClipRecord = outcome
        self.frames_per_s = sum(len(clip) for clip in batch) * self._given / spent

    def _batches(self, batch: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
        while self._given < self._least or self._spent() * (1 + 1 / self._given) <= self._seconds:
            self._given += 1
            yield batch

    def _spent(self) -> float:
        return time.perf_counter() - self._start


def batch_of(clip: Clip, clips: int, *, room: int) -> list[Clip]:
    """As many as `clips` copies of a clip, for `room` frames: fewer copies first, then a shorter clip."""
    frames = max(min(WARM_UP, len(clip)), min(len(clip), room))
    return [first_frames(clip, frames)] * max(1, min(clips, room // frames))


def models_for_probe(recipe: ExtractRecipe, place: torch.device) -> tuple[ExtractRecipe, FrozenModels]:
    """The recipe's models or, where weights are missing, models of the same sizes with random ones; and their recipe.

    Random weights take the same time. Which models have them is said on stderr, and in their records.
    """
    try:
        return recipe, load_models(recipe, place)
    except RequestError as error:
        missing = error
    from pipeline.bench.full_size import full_size_models

    try:
        recipe = override(recipe, ["vggt.weights=random:0", "concerto.weights=random:0"])
        return recipe, full_size_models(recipe, place)
    except RequestError:
        raise missing from None


def first_frames(clip: Clip, count: int) -> Clip:
    """The first `count` frames of a clip, or all of them."""
    count = min(count, len(clip))

    def cut(array: Array | None) -> Array | None:
        return None if array is None else array[:count]

    arrays: dict[str, Any] = {
        name: cut(getattr(clip, name))
        for name in ("rgb", "time", "depth", "intrinsic", "extrinsic", "state", "action", "is_pad")
    }
    trajectory = clip.trajectory
    return replace(
        clip,
        **arrays,
        extra={name: array[:count] for name, array in clip.extra.items()},
        trajectory=None if trajectory is None else replace(trajectory, step=trajectory.step[:count]),
        views={name: pictures[:count] for name, pictures in clip.views.items()},
    )


def generated_clip(recipe: ExtractRecipe, frames: int) -> Clip:
    """A clip of the tabletop world with that many frames, where the dataset's own are not there."""
    source = open_source("tabletop", None, None, {"clips": "1", "seed": "0"})
    sampling = recipe.frames.model_copy(update={"fps": None, "stride": 1, "max": frames, "min": 1})
    return source.read(source.clips()[0], sampling)


def device_name(place: torch.device) -> str:
    """What a device is, in words."""
    if place.type == "cuda":
        return str(torch.cuda.get_device_name(place))
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of a CPU with {os.cpu_count()} cores"
