"""What a user asks of `cla extract`, and what comes of it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from data_specs.shards import Format, Manifest
from pipeline.config import ExtractRecipe
from pipeline.extract.partition import Partition
from pipeline.extract.progress import Tally
from pipeline.foreign import shortened
from pipeline.store.errors import StoreError

MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What the user asked for. `recipe` decides what is written; the rest where, how, and over which clips.

    `partition` says which of the shards this process writes: others may write the rest, at the same time. `engine` ray
    runs `actors` (default: one a GPU) in the cluster at `ray_address`; an empty address starts one on this machine.
    """

    dataset: str
    root: Path | None
    split: str | None
    options: dict[str, str]
    limit: int | None
    out: str
    format: Format
    recipe: ExtractRecipe
    workers: int = 1
    device: str = "auto"
    mode: Literal["new", "resume", "overwrite"] = "new"
    retry_rejected: bool = False
    partition: Partition | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str = ""
    actors: int | None = None

    @property
    def part(self) -> str:
        """What distinguishes this writer of the store from others; "" for one that has it alone."""
        return "" if self.partition is None else f"{self.partition.number}-of-{self.partition.of}"


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run did (`tally`) and what the store holds after it; `truncated` distinct instructions were too long.

    `open_shards` are still to be written, by others: the counts are then of this run's partition alone, and the store
    has no index yet.
    """

    out: str
    tally: Tally
    clips: int
    frames: int
    bytes: int
    rejected: tuple[tuple[str, str], ...]
    max_bad_fraction: float
    random_models: tuple[str, ...]
    truncated: int = 0
    partition: Partition | None = None
    open_shards: int = 0
    finished: bool = True

    @property
    def bad_fraction(self) -> float:
        """Share of the listed clips that are bad."""
        total = self.clips + len(self.rejected)
        return len(self.rejected) / total if total else 0.0

    @property
    def too_many_bad(self) -> bool:
        """Whether more clips were bad than the recipe allows."""
        return self.bad_fraction > self.max_bad_fraction

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "out": self.out,
            "clips": self.clips,
            "frames": self.frames,
            "bytes": self.bytes,
            "rejected": [{"key": key, "reason": reason} for key, reason in self.rejected],
            "bad_fraction": self.bad_fraction,
            "random_weights": list(self.random_models),
            "truncated_instructions": self.truncated,
            "partition": None if self.partition is None else str(self.partition),
            "open_shards": self.open_shards,
            "finished": self.finished,
            "run": {**asdict(self.tally), "frames_per_s": self.tally.frames_per_s},
        }

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        tally = self.tally
        of = "" if self.partition is None or self.finished else f", partition {self.partition}"
        yield f"{self.out}{of}: {self.clips} clips, {self.frames} frames, {self.bytes / 1e6:.1f} MB"
        yield (
            f"this run: {tally.clips} clips, {tally.frames} frames in {tally.wall_s:.1f} s "
            f"({tally.frames_per_s:.2f} frames/s); read {tally.read_s:.1f} s, infer {tally.infer_s:.1f} s, "
            f"write {tally.write_s:.1f} s, overlapping"
        )
        if tally.skipped_clips:
            yield f"{tally.skipped_clips} clips were in committed shards already"
        if self.random_models:
            yield f"RANDOM weights: {', '.join(self.random_models)}. The features are not those of a trained model."
        if self.truncated:
            yield f"{self.truncated} distinct instructions were longer than text.tokens and are cut there"
        if self.rejected:
            yield f"{len(self.rejected)} bad clips ({self.bad_fraction:.1%}), see rejected.jsonl:"
            for key, reason in self.rejected[:MOST_SHOWN]:
                yield f"  {key}: {reason}"
            if len(self.rejected) > MOST_SHOWN:
                yield f"  and {len(self.rejected) - MOST_SHOWN} more"
        if self.too_many_bad:
            yield f"More than max_bad_fraction={self.max_bad_fraction:g} of the clips are bad."
        if self.finished:
            yield f"next: cla inspect-shards {self.out} --verify --html page.html"
        else:
            where = (
                f"{self.open_shards} shards are left to other partitions" if self.open_shards else "no shard is left"
            )
            yield f"{where}; when all have ended: cla merge {self.out}"


def recipe_of(manifest: Manifest, url: str) -> ExtractRecipe:
    """The recipe that a store's manifest keeps. StoreError when this version of the program reads it otherwise."""
    try:
        return ExtractRecipe.model_validate(manifest.recipe)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise StoreError(
            f"The recipe in the manifest of {url} does not hold together ({shortened(names) or 'as a whole'}): install "
            "the version of concerto-laq that wrote it, or extract anew."
        ) from error


def whole_option(manifest: Manifest, name: str, url: str) -> int | None:
    """A number among what the dataset of a store was asked for; None where it is not said. StoreError for no number."""
    value = manifest.dataset.options.get(name)
    if value is not None and (not isinstance(value, int) or not 0 <= value < 1 << 62):
        raise StoreError(f"The manifest of {url} has {name}={shortened(repr(value), 60)}, expected a whole number.")
    return value
