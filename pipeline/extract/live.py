"""What a store would give of a frame, made live for a policy that acts: by the code of extraction, bit for bit."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, LanguageBatch
from data_specs.records import Clip
from data_specs.shards import EXTRA, VIEWS, VISION, ModelRecord
from pipeline.config import ExtractRecipe, RequestError, suggest
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import CLOUD, TEXT, FrozenModels, load_models, parts_of
from pipeline.extract.pack import encode_images, pack_views
from pipeline.extract.robot import check_robot
from pipeline.store.assemble import assemble
from pipeline.store.language import LanguageTable
from pipeline.store.places import ClipPlaces
from pipeline.store.shard import ShardReader

CLOUDS = ("tokens", "cells", "points", "camera")
LANGUAGE = "language"
PLAIN = (*CLOUDS, "rgb", "state", LANGUAGE)
"""Columns that there are of a single frame, beside `vision/NAME` and `views/NAME`."""


class LiveEncoder:
    """Observations → the columns of a policy, bit for bit those that extraction by `recipe` stores of the same frames.

    Args:
        recipe: that of the store. One that sees frames together (`needs_other_frames`) has no live frames; one without
            `robot.live` differs from its store in last bits, where frames ran in batches.
        models: of the recipe, at least those that the columns need (see `load`).
        columns: of the policy: tokens, cells, points, camera, rgb, state, language, vision/NAME, views/NAME.

    Raises:
        RequestError: a column that a single frame cannot have, or that the recipe does not make.
    """

    def __init__(self, recipe: ExtractRecipe, models: FrozenModels, columns: Iterable[str]) -> None:
        self.columns = tuple(dict.fromkeys(columns))
        self.parts = needed_parts(recipe, self.columns)
        self.recipe, self.models = recipe, models
        self._mapper = Mapper(recipe, models)
        self._vision = [name.removeprefix(VISION) for name in self.columns if name.startswith(VISION)]

    @classmethod
    def load(
        cls,
        recipe: ExtractRecipe,
        device: torch.device,
        columns: Iterable[str],
        *,
        records: Sequence[ModelRecord] | None = None,
    ) -> "LiveEncoder":
        """The encoder with the models that its columns need, and no others.

        `records` are those of the store that the policy was trained on: RequestError unless the models loaded are the
        same, weights and all.
        """
        columns = tuple(columns)
        models = load_models(recipe, device, parts=needed_parts(recipe, columns))
        if records is not None:
            _check_same(models.records, records)
        return cls(recipe, models, columns)

    def frames(self, clips: Sequence[Clip]) -> FrameBatch:
        """Observations as a batch, one frame a clip; `index` counts them.

        Raises:
            BadClip: a frame that extraction would reject: too few points, depth or camera that cannot be used.
            ValueError: no clip, a clip of another number of frames, or one without a column's data.
        """
        if not clips:
            raise ValueError("a batch of no observations: give at least one clip")
        places = [(_Memory(self._arrays(clip)), 0, 0) for clip in clips]
        wanted = [name for name in self.columns if name != LANGUAGE]
        time = np.array([clip.time[0] for clip in clips], dtype=np.float64)
        return assemble(ClipPlaces(places), wanted, index=np.arange(len(clips)), time=time)

    def language(self, texts: Sequence[str]) -> LanguageBatch:
        """Instructions as a batch, padded to the longest of them; each runs through the encoder once and is kept.

        Raises:
            ValueError: no instructions, or the encoder gives values that are not finite.
        """
        encoder = self.models.text
        assert encoder is not None, "language was not among the columns"
        if not texts:
            raise ValueError("a batch of no instructions has no language: give at least one")
        encoded = {text: encoder.encode(text) for text in texts}
        return LanguageTable.of(encoded, model=encoder.record, limit=encoder.limit).batch(texts)

    @torch.inference_mode()
    def _arrays(self, clip: Clip) -> dict[str, Array]:
        """The arrays of a shard that the columns are made of."""
        if len(clip) != 1:
            raise ValueError(f"observation {clip.key} has {len(clip)} frames, expected one")
        check_robot(clip, {})
        arrays: dict[str, Array] = {"time": clip.time.astype(np.float64)}
        known = None
        if CLOUD in self.parts:
            lifted = self._mapper.clouds.lift(clip)
            known = lifted.geometry.tokens
            for family, value in zip(CLOUDS, self._mapper.pack(clip, lifted), strict=True):
                held = {name: array for name, array in vars(value).items() if array is not None}
                arrays |= {f"{family}/{name}": array for name, array in held.items()}
        for name, tokens in self._mapper.see(clip, self._vision, known).items():
            arrays[VISION + name] = tokens
        if "rgb" in self.columns:
            images = encode_images(clip.rgb, self.recipe.store.image, self.recipe.store.quality)
            arrays |= {"rgb/data": images.data, "rgb/offset": images.offset}
        if any(name.startswith(VIEWS) for name in self.columns):
            for name, images in pack_views(clip, self.recipe.store).items():
                arrays |= {f"{VIEWS}{name}/data": images.data, f"{VIEWS}{name}/offset": images.offset}
        if clip.state is not None:
            arrays["state"] = clip.state
        return arrays


def needed_parts(recipe: ExtractRecipe, columns: Collection[str]) -> frozenset[str]:
    """The parts of a recipe's models that make these columns; RequestError for a column that it cannot make live."""
    have, needed = parts_of(recipe), set()
    for column in columns:
        if column.partition("/")[0] in CLOUDS:
            needed.add(CLOUD)
        elif column == LANGUAGE or column.startswith(VISION):
            part = TEXT if column == LANGUAGE else column
            if part not in have:
                made = ", ".join(sorted(have - {CLOUD})) or "none"
                raise RequestError(
                    f"Recipe {recipe.name} does not make the column {column!r}: of encoders it has {made}. The policy "
                    "was trained on a store of another recipe."
                )
            needed.add(part)
        elif column not in PLAIN and not column.startswith(VIEWS):
            known = (*PLAIN, *sorted(part for part in have if part.startswith(VISION)), "views/NAME")
            reason = "is of a whole episode" if column.startswith(EXTRA) else "is none of a store"
            raise RequestError(
                f"The column {column!r} {reason} and cannot be made of one observation.{suggest(column, known)} There "
                f"are: {', '.join(known)}."
            )
    if CLOUD in needed and (problem := recipe.needs_other_frames()):
        raise RequestError(
            f"Recipe {recipe.name} cannot run live: {problem}. Extract again with a recipe of single frames "
            "(robot.live=true checks that) and train on that store."
        )
    return frozenset(needed)


def _check_same(loaded: Sequence[ModelRecord], stored: Sequence[ModelRecord]) -> None:
    theirs = {record.role: record for record in stored}
    for record in loaded:
        other = theirs.get(record.role)
        if other is None or (record.sha256, record.random) != (other.sha256, other.random):
            was = "no such model" if other is None else f"{other.name} [{other.sha256[:12] or 'random'}]"
            raise RequestError(
                f"The store was made with {was} as {record.role}, here is {record.name} "
                f"[{record.sha256[:12] or 'random'}]: give the same weights, for the policy has seen no others."
            )
        if record.random and record.name != other.name:
            raise RequestError(f"The store was made with {other.name} as {record.role}, not with {record.name}.")


class _Memory(ShardReader):
    """The arrays of a clip of one frame, read as from a shard."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.name = "of this observation"
        self.lengths = np.ones(1, dtype=np.int64)
        self.arrays = tuple(arrays)
        self._arrays = arrays

    def offset(self, name: str, clip: int) -> Array:
        self._need(name)
        return self._arrays[name]

    def length(self, name: str, clip: int) -> int:
        self._need(name)
        return len(self._arrays[name])

    def rows(self, name: str, clip: int, start: int, stop: int) -> Array:
        self._need(name)
        return self._arrays[name][start:stop]
