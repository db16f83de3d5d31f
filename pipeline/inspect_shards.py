"""What a store holds, in numbers: for people, for `--json`, and for the page."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data_specs.arrays import Array
from data_specs.records import exclusive_sum
from data_specs.shards import LANGUAGE, VIEWS, VISION, DatasetRecord, Manifest, ModelRecord, Rejected, Sidecar
from pipeline.foreign_images import BadPicture, picture
from pipeline.store.columns import content_digest, view_names
from pipeline.store.errors import ShardError, StoreError
from pipeline.store.language import read_language
from pipeline.store.layout import StoreLayout, current_rejections
from pipeline.store.pixels import STORED
from pipeline.store.shard import ShardReader, open_shard
from pipeline.store.verify import Damage
from pipeline.store.verify import verify as check
from pipeline.store.writer import array_entry

HISTOGRAM_BINS = 24


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Part):
    """Least, median and greatest."""

    min: float
    median: float
    max: float


class Range(_Part):
    """Least and greatest."""

    min: float
    max: float


class Histogram(_Part):
    """`counts[i]` values lie in [edges[i], edges[i+1]); the last bin holds its upper edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class DamageEntry(_Part):
    """See `pipeline.store.verify.Damage`."""

    shard: str
    array: str
    problem: str


class LanguageFigures(_Part):
    """The text encoder's file: distinct `instructions`, `tokens` of the longest, of `channels`, at most `limit`.

    `truncated` instructions were longer and are cut; `bytes` is of the arrays.
    """

    instructions: int
    tokens: int
    channels: int
    limit: int
    truncated: int
    bytes: int


class StoreSummary(_Part):
    """What `cla inspect-shards` reports. Fields about frames are None for a store without frames.

    `compression_vs_dense` is `dense_bytes_per_frame`, of the array that `dense_layout` names, over the store's bytes a
    frame; `bytes` is of the data files, `bytes_per_frame_by_array` of the arrays as stored (the rest is headers and
    metadata). `verified` is None when nobody looked, else whether no damage was found. `digest` is of the content by
    clip and frame, the same for every shard size, format, engine and number of workers. `nonfinite` counts values
    that are not finite by array. `depth` and `confidence` span the ranges of all frames. `unread` lists shards that
    could not be opened, whose frames are missing from the figures. `vision` gives (tokens, channels) of each image
    encoder, `views` (height, width) of each further camera, `language` what the text encoder left, or None.
    `tokens_dtype` is float16, or int8 with scales; `points_kept` is false for a store that keeps no points.
    """

    path: str
    schema_version: int
    format: str
    dataset: DatasetRecord
    models: tuple[ModelRecord, ...]
    random_weights: tuple[str, ...]
    recipe: dict[str, Any]
    geometry: dict[str, Any]
    seed: int
    sizes: dict[str, int]
    shards: int
    clips: int
    frames: int
    bytes: int
    bytes_per_frame: float | None
    bytes_per_frame_by_array: dict[str, float] = Field(default_factory=dict)
    dense_layout: str
    dense_bytes_per_frame: int
    compression_vs_dense: float | None
    tokens_per_frame: Spread | None
    tokens_histogram: Histogram | None
    points_per_frame: Spread | None
    depth: Range | None
    confidence: Range | None
    nonfinite: dict[str, int]
    rejected: int
    rejected_clips: tuple[Rejected, ...]
    verified: bool | None
    damages: tuple[DamageEntry, ...]
    unread: tuple[DamageEntry, ...]
    vision: dict[str, tuple[int, int]] = Field(default_factory=dict)
    views: dict[str, tuple[int, int]] = Field(default_factory=dict)
    language: LanguageFigures | None = None
    tokens_dtype: str | None = None
    points_kept: bool = True
    digest: str

    @property
    def every_damage(self) -> tuple[DamageEntry, ...]:
        """What verification and reading found, each once."""
        return (*self.damages, *(entry for entry in self.unread if entry not in self.damages))

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return self.model_dump(mode="json")


def inspect_store(path: str, *, verify: bool = False) -> StoreSummary:
    """Read a store's figures from its sidecars and its small arrays; with `verify` also check all of it.

    Args:
        path: a folder or any fsspec URL.
        verify: check every checksum, schema rule and index row, and count non-finite values anew.

    Raises:
        StoreRequestError: there is no store at `path`, or it has another schema version.
    """
    layout = StoreLayout.open(str(path))
    figures, unread = _Figures(), list[DamageEntry]()

    def each() -> Iterator[Sidecar]:
        for shard in layout.committed():
            try:
                sidecar = layout.sidecar(shard)
                figures.take(sidecar)
                if not verify:
                    figures.count({name: entry.nonfinite for name, entry in sidecar.arrays.items()})
                yield sidecar
                if sidecar.file is not None:
                    figures.read(open_shard(layout.source(shard), shard, sidecar.format), recount=verify)
            except ShardError as error:
                unread.append(_entry(Damage(shard=shard, array=error.array or "", problem=error.problem)))

    rejected = tuple(current_rejections(each()))
    try:
        language = _language(layout)
    except StoreError as error:
        language = None
        unread.append(_entry(Damage(shard=LANGUAGE, array="", problem=str(error))))
    damages = tuple(_entry(damage) for damage in check(layout)) if verify else ()
    return _summary(
        layout,
        figures,
        rejected=rejected,
        verified=not damages if verify else None,
        damages=damages,
        unread=unread,
        language=language,
    )


class _Figures:
    """What is gathered shard by shard."""

    def __init__(self) -> None:
        self.clips: list[tuple[str, str]] = []
        self.frames = self.shards = self.stored = 0
        self.by_array: dict[str, int] = {}
        self.tokens_dtype: str | None = None
        self.tokens: list[Array] = []
        self.points: list[Array] = []
        self.depth: list[Array] = []
        self.confidence: list[Array] = []
        self.nonfinite: dict[str, int] = {}
        self.vision: dict[str, tuple[int, int]] = {}
        self.views: dict[str, tuple[int, int]] = {}

    def take(self, sidecar: Sidecar) -> None:
        """Add what a sidecar lists."""
        self.clips += ((row.key, row.digest) for row in sidecar.rows)
        self.frames += sum(row.frames for row in sidecar.rows)
        if sidecar.file is not None:
            self.shards, self.stored = self.shards + 1, self.stored + sidecar.file.bytes
        for name, entry in sidecar.arrays.items():
            self.by_array[name] = self.by_array.get(name, 0) + entry.bytes
        if self.tokens_dtype is None and sidecar.arrays:
            self.tokens_dtype = np.dtype(sidecar.arrays["tokens/feat"].dtype).name

    def read(self, reader: ShardReader, *, recount: bool) -> None:
        """Add a shard; all of its figures or, when it is damaged, none."""
        tokens, points, depth, confidence = [], [], [], []
        for clip in range(len(reader.lengths)):
            offset = reader.offset("tokens/offset", clip)
            tokens.append(np.diff(offset))
            points.append(np.diff(exclusive_sum(reader.clip_array("tokens/count", clip))[offset]))
            depth.append(np.array(reader.clip_array("camera/range", clip)))
            confidence.append(np.array(reader.clip_array("camera/conf_range", clip)))
        if recount:
            self.count({name: array_entry(reader, name).nonfinite for name in reader.arrays})
        for name in view_names(reader.arrays):
            self.views[name] = _image_size(reader.frame(f"{VIEWS}{name}/data", 0, 0).tobytes())
        for name in (name for name in reader.arrays if name.startswith(VISION)):
            tokens_channels = reader.rows(name, 0, 0, 1).shape[1:]
            self.vision[name.removeprefix(VISION)] = (tokens_channels[0], tokens_channels[1])
        if tokens:  # an array a shard: of a million clips their arrays would take gigabytes
            self.tokens.append(np.concatenate(tokens))
            self.points.append(np.concatenate(points))
            self.depth.append(np.concatenate(depth))
            self.confidence.append(np.concatenate(confidence))

    def count(self, nonfinite: Mapping[str, int]) -> None:
        """Add counts of non-finite values."""
        for name, count in nonfinite.items():
            if count:
                self.nonfinite[name] = self.nonfinite.get(name, 0) + count


def _summary(
    layout: StoreLayout,
    figures: _Figures,
    *,
    rejected: tuple[Rejected, ...],
    verified: bool | None,
    damages: tuple[DamageEntry, ...],
    unread: Sequence[DamageEntry],
    language: LanguageFigures | None,
) -> StoreSummary:
    manifest: Manifest = layout.manifest
    frames, stored, by_array = figures.frames, figures.stored, figures.by_array
    kept, channels = manifest.sizes["P"], manifest.sizes["C"]
    points = kept or int(manifest.recipe.get("points", {}).get("count", 0))
    dense = points * channels * 2
    tokens = np.concatenate(figures.tokens) if figures.tokens else np.zeros(0)
    return StoreSummary(
        path=layout.url,
        schema_version=manifest.schema_version,
        format=manifest.format,
        dataset=manifest.dataset,
        models=manifest.models,
        random_weights=tuple(model.role for model in manifest.models if model.random),
        recipe=manifest.recipe,
        geometry=manifest.geometry,
        seed=manifest.seed,
        sizes=manifest.sizes,
        shards=figures.shards,
        clips=len(figures.clips),
        frames=frames,
        bytes=stored,
        bytes_per_frame=stored / frames if frames else None,
        bytes_per_frame_by_array={name: size / frames for name, size in by_array.items()} if frames else {},
        dense_layout=f"[{points}, {channels}] float16",
        dense_bytes_per_frame=dense,
        compression_vs_dense=dense * frames / stored if stored else None,
        tokens_per_frame=_spread(tokens),
        tokens_histogram=_histogram(tokens),
        points_per_frame=_spread(np.concatenate(figures.points) if figures.points else np.zeros(0)),
        depth=_range(figures.depth),
        confidence=_range(figures.confidence),
        nonfinite=dict(sorted(figures.nonfinite.items())),
        rejected=len(rejected),
        rejected_clips=rejected,
        verified=verified,
        damages=damages,
        unread=tuple(unread),
        vision=dict(sorted(figures.vision.items())),
        views=dict(sorted(figures.views.items())),
        language=language,
        tokens_dtype=figures.tokens_dtype,
        points_kept=kept > 0,
        digest=content_digest(figures.clips),
    )


def _language(layout: StoreLayout) -> LanguageFigures | None:
    table = read_language(layout)
    if table is None:
        return None
    return LanguageFigures(
        instructions=len(table),
        tokens=table.feat.shape[1],
        channels=table.feat.shape[2],
        limit=table.limit,
        truncated=len(table.truncated),
        bytes=table.feat.nbytes + table.mask.nbytes,
    )


def _image_size(encoded: bytes) -> tuple[int, int]:
    """Height and width of a picture, (0, 0) for bytes that are none."""
    try:
        with picture(io.BytesIO(encoded), STORED) as image:
            return image.height, image.width
    except BadPicture:
        return 0, 0


def _spread(values: Array) -> Spread | None:
    if values.size == 0:
        return None
    return Spread(min=float(values.min()), median=float(np.median(values)), max=float(values.max()))


def _histogram(values: Array) -> Histogram | None:
    """Bins of whole numbers, at most `HISTOGRAM_BINS`."""
    if values.size == 0:
        return None
    low, high = int(values.min()), int(values.max()) + 1
    step = max(1, -(-(high - low) // HISTOGRAM_BINS))
    edges = np.arange(low, high + step, step)
    counts, _ = np.histogram(values, bins=edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _range(parts: Sequence[Array]) -> Range | None:
    """Over [F,2] arrays of least and greatest; values that are not finite are left to `nonfinite`."""
    if not parts:
        return None
    both = np.concatenate(parts)
    finite = both[np.isfinite(both)]
    return Range(min=float(finite.min()), max=float(finite.max())) if finite.size else None


def _entry(damage: Damage) -> DamageEntry:
    return DamageEntry(shard=damage.shard, array=damage.array, problem=damage.problem)
