"""What cached columns save a policy: a training step on them, beside the same step with frozen encoders in the loop.

As in `pipeline.bench.train`, both are made of parts that take turns: reading a batch of moments from the store; the
trained step; and the frozen encoders on the stored frames of the very same moments, through the code by which a
policy acts (`LiveEncoder`), which gives what the store holds. The one loop pays the first two, the other the last two.

The two numbers before anything is measured are operations and bytes a moment. Operations are counted as they run, in
products, convolutions and attention of both sides, beside the rate at which the machine multiplies matrices: their
ratio is what cached columns can save where nothing else is in the way. Bytes are those of the columns that are read.
"""

import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data_specs.batches import PolicyBatch
from data_specs.records import BadClip, Clip
from data_specs.shards import VISION, ModelRecord
from pipeline.bench.full_size import full_size_models, full_size_recipe
from pipeline.bench.rates import counting, matrix_rate
from pipeline.bench.recipes import override_both
from pipeline.bench.store import write_store
from pipeline.bench.table import Table, interleaved
from pipeline.bench.training import Training, wait
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.devices import choose_device
from pipeline.extract.clouds import single_frame
from pipeline.extract.language import store_language
from pipeline.extract.live import CLOUDS, LANGUAGE, LiveEncoder
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import CLOUD, FrozenModels, load_models
from pipeline.extract.runner import ExtractRequest, manifest_of
from pipeline.recipes import extract_recipe, vla_recipe
from pipeline.sources import open_source
from pipeline.store.pixels import decode_images
from pipeline.train.policy_data import PolicyData
from pipeline.train.policy_recipe import PolicyRecipe, VlaRecipe
from pipeline.train.policy_sections import MomentsSection
from pipeline.train.policy_stores import PolicyStores
from pipeline.train.vla import VlaTask

SIZES: dict[str, tuple[str, str, int]] = {
    "tiny": ("tabletop_vla_3d", "rgbd_tiny", 32),
    "full": ("vla_3d", "robot_full", 4),
}
"""By the size of the frozen models: the recipe, the extraction's, and how many moments make a batch, unless said."""

TASKS = "reach,push,pick"
_FRAMES_A_CLIP = 4


def choose_recipes(
    size: str, policy: str, extraction: str, overrides: Sequence[str]
) -> tuple[PolicyRecipe, ExtractRecipe]:
    """Both recipes, those of the size where no name is given; at size `full` the frozen models have released sizes."""
    if size not in SIZES:
        raise RequestError(f"--size {size} is unknown: expected {' or '.join(SIZES)}.")
    names = SIZES[size]
    frozen = extract_recipe(extraction or names[1])
    if size == "full":  # before the overrides: they may choose otherwise
        frozen = full_size_recipe(frozen)
    return override_both(vla_recipe(policy or names[0]), frozen, overrides)


def bench_policy(
    recipe: PolicyRecipe, extraction: ExtractRecipe, *, size: str, moments: int, rounds: int, device: str
) -> Table:
    """Median seconds of reading, of the trained step, of the frozen image and text encoders, for a batch of `moments`.

    The moments are of demonstrations in the tabletop world. Both sides compute in the precision of their recipes.
    Nothing is compiled, and no process reads ahead: reading counts in full.

    Raises RequestError for a policy that reads no frozen features, and for recipes that do not fit together.
    """
    place = choose_device(device)
    columns = recipe.build_checked("meta").columns
    frozen_columns = [name for name in columns if _frozen(name)]
    if not frozen_columns:
        raise RequestError(f"Recipe {recipe.name} reads no output of a frozen model: there is nothing to compare.")
    request = _request(extraction, frozen_columns, moments)
    source = open_source(request.dataset, request.root, request.split, request.options)
    models = full_size_models(request.recipe, place) if size == "full" else load_models(request.recipe, place)
    clips = _read(source, request)
    with tempfile.TemporaryDirectory(prefix="cla-bench-") as folder:
        mapper = Mapper(request.recipe, models)
        manifest = manifest_of(request, source, source.clips(), models)
        layout = write_store(f"{folder}/store", [mapper(clip) for clip in clips.values()], manifest)
        store_language(layout, models.text)
        stores = PolicyStores.open([f"{folder}/store"])
        recipe = _alone(recipe.for_stores(stores.sizes), moments)
        model = recipe.build_checked("meta")
        reads = (*model.columns, *model.targets)
        training = Training(VlaTask(recipe, PolicyData(stores, recipe, reads, horizon=model.horizon)), place)
        loop = EncodersInTheLoop(request.recipe, models, stores, clips, frozen_columns, place)
        try:
            training.read()
            assert training.batch is not None
            index = training.batch.frames.index.cpu().numpy()
            gflop = {"step": _gflop(training.step, moments), "frozen": _gflop(lambda: loop.both(index), moments)}
            parts = {
                "read": training.read,
                "step": training.step,
                "frozen": lambda: loop.see(index),
                "text": lambda: loop.speak(index),
            }
            seconds = interleaved(parts, rounds, warmup=0)
            size_read = _bytes(training.batch) / moments
        finally:
            training.end()
    figures = _Figures(seconds=seconds, moments=moments, gflop=gflop, bytes_read=size_read)
    about = _about(training.parameters, recipe, model.columns, request.recipe, loop.records)
    notes = [*about, *figures.notes(matrix_rate(place))]
    recipes = {"policy": recipe.model_dump(mode="json"), "extract": request.recipe.model_dump(mode="json")}
    return figures.table(f"{recipe.name} on features of {extraction.name}, {place}", notes, recipes)


class EncodersInTheLoop:
    """The frozen columns of moments, made when they are needed: from the stored pictures, not from the stored features.

    Args:
        recipe, models: what encodes. stores: one that they have made. clips: those behind it by key, for what sensors
            saw beside the picture. columns: which to make. device: where the batch shall be.
    """

    def __init__(
        self,
        recipe: ExtractRecipe,
        models: FrozenModels,
        stores: PolicyStores,
        clips: dict[str, Clip],
        columns: Sequence[str],
        device: torch.device,
    ) -> None:
        self._models, self._stores, self._clips, self._device = models, stores, clips, device
        self._encoder = LiveEncoder(recipe, models, columns)
        self._sees = any(name != LANGUAGE for name in columns)

    @property
    def records(self) -> tuple[ModelRecord, ...]:
        """The models that run, of those that the store was made with."""
        parts = self._encoder.parts
        roles = set(parts)
        if CLOUD in parts:
            roles |= {"vggt", "concerto"}
        if VISION + "vggt" in parts:
            roles.add("vggt")
        return tuple(record for record in self._models.records if record.role in roles)

    def see(self, moments: np.ndarray[Any, Any]) -> PolicyBatch | None:
        """Decode the pictures and encode each; None for a policy that reads nothing but language."""
        if not self._sees:
            return None
        stored = self._stores.batch(moments, ["rgb"]).rgb
        assert stored is not None, "it was asked for"
        pictures = decode_images(stored).numpy()
        clips = []
        for picture, moment, clip in zip(pictures, moments, self._stores.clip_of(moments), strict=True):
            one = single_frame(self._clips[self._stores.keys[clip]], int(moment - self._stores.start[clip]))
            clips.append(replace(one, rgb=picture[None]))
        batch = PolicyBatch(frames=self._encoder.frames(clips)).to(self._device)
        wait(self._device)
        return batch

    def speak(self, moments: np.ndarray[Any, Any]) -> None:
        """Encode each distinct instruction of the moments."""
        if LANGUAGE in self._encoder.columns:
            assert self._models.text is not None, "the columns were checked"
            self._models.text.forget()
            self._encoder.language(sorted({self._stores.texts[clip] for clip in self._stores.clip_of(moments)}))
            wait(self._device)

    def both(self, moments: np.ndarray[Any, Any]) -> None:
        """See and speak."""
        self.see(moments)
        self.speak(moments)


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """Seconds of the parts of a batch of `moments`, operations (10^9) and bytes of one."""

    seconds: dict[str, float]
    moments: int
    gflop: dict[str, float]
    bytes_read: float

    @property
    def cached(self) -> float:
        return self.seconds["read"] + self.seconds["step"]

    @property
    def live(self) -> float:
        return self.seconds["step"] + self.seconds["frozen"] + self.seconds["text"]

    @property
    def without_text(self) -> float:
        return (self.live - self.seconds["text"]) / self.cached

    def notes(self, rate: float) -> list[str]:
        step, frozen = self.gflop["step"], self.gflop["frozen"]
        return [
            f"with cached columns {self.live / self.cached:.1f} times the samples/s; {self.without_text:.1f} times if "
            "every instruction is encoded once and kept",
            f"GFLOP a moment: step {step:.3g}, frozen {frozen:.3g}, so {(step + frozen) / step:.3g} times by "
            f"operations; this machine multiplies matrices at {rate:.0f} GFLOP/s",
            f"read: {self.bytes_read / 1e3:.1f} kB a moment",
        ]

    def table(self, title: str, notes: list[str], recipes: dict[str, Any]) -> Table:
        named = {
            "read a batch of moments": self.seconds["read"],
            "trained step": self.seconds["step"],
            "decode pictures, frozen encoders": self.seconds["frozen"],
            "text encoder, each distinct instruction": self.seconds["text"],
            "step on cached columns": self.cached,
            "step with the frozen encoders in the loop": self.live,
        }
        rows = tuple((what, s, self.moments / s if s else float("inf")) for what, s in named.items())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return Table(
            title=f"cla bench policy: {title}, a batch of {self.moments}",
            columns=("what", "s", "samples/s"),
            rows=rows,
            notes=(*notes, f"peak memory {peak:.1f} GB"),
            figures={
                "ratio": self.live / self.cached,
                "ratio_without_text": self.without_text,
                "samples_per_s": {"cached": self.moments / self.cached, "live": self.moments / self.live},
                "seconds": self.seconds,
                "gflop": self.gflop,
                "bytes_read": self.bytes_read,
                "moments": self.moments,
                "peak_rss_gb": peak,
                "recipes": recipes,
            },
        )


def _frozen(column: str) -> bool:
    family = column.partition("/")[0]
    return family in CLOUDS or column == LANGUAGE or column.startswith(VISION)


def _request(extraction: ExtractRecipe, columns: Sequence[str], moments: int) -> ExtractRequest:
    """What extracts as few clips as hold the moments, with the encoders that are read and no others."""
    vision = extraction.vision
    read = [f"{name}={weights}" for name, weights in vision.named.items() if VISION + name in columns]
    frames = min(_FRAMES_A_CLIP, moments)
    lean = override(
        extraction,
        [
            f"frames.max={frames}",
            f"frames.min={frames}",
            f"vision.towers={','.join(read)}",
            f"text.weights={extraction.text.weights if LANGUAGE in columns else ''}",
            f"vision.vggt={'true' if vision.vggt and VISION + 'vggt' in columns else 'false'}",
        ],
    )
    clips = -(-moments // frames)
    return ExtractRequest(
        dataset="tabletop",
        root=None,
        split="train",  # with clips of two splits, training would hold some of them out
        options={"clips": str(2 * clips), "seed": "0", "tasks": TASKS},
        limit=clips,
        out="",
        format="zarr",
        recipe=lean,
    )


def _read(source: Any, request: ExtractRequest) -> dict[str, Clip]:
    try:
        clips = [source.read(ref, request.recipe.frames) for ref in source.clips()[: request.limit]]
    except BadClip as error:
        raise RequestError(f"The demonstrations do not fit the recipe: {error}.") from None
    return {clip.key: clip for clip in clips}


def _alone(recipe: PolicyRecipe, moments: int) -> PolicyRecipe:
    """The recipe on a store that holds one batch: nothing held out, no other process."""
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"batch": moments, "accumulate": 1, "workers": 0}),
            "split": recipe.split.model_copy(update={"validation": 0.0}),
            "data": MomentsSection(),
        }
    )


def _about(
    parameters: int,
    recipe: PolicyRecipe,
    columns: Sequence[str],
    extraction: ExtractRecipe,
    models: Sequence[ModelRecord],
) -> list[str]:
    dtypes = {name: getattr(extraction, name).dtype for name in ("vggt", "concerto", "text")}
    frozen = (f"{one.role} ({one.name}, {dtypes.get(one.role, extraction.vision.dtype)})" for one in models)
    notes = [
        f"{parameters / 1e6:.1f}M trained parameters in {recipe.train.precision}; it reads {', '.join(columns)}",
        f"frozen: {', '.join(frozen)}; a frame at a time",
    ]
    vision = recipe.model.vision if isinstance(recipe, VlaRecipe) else None
    if vision is not None and "pointing" in vision.names and not vision.pointing.features:
        notes.append(
            "its slots look at places and colours of the cloud, not at Concerto's features: a loop without Concerto "
            "would be quicker than this one"
        )
    if any(record.random for record in models):
        notes.append("random weights: times are those of trained ones, features are not")
    return notes


def _gflop(action: Any, moments: int) -> float:
    """Operations of an action, 10^9 a moment."""
    with counting() as told:
        action()
        return told() / moments


def _bytes(batch: PolicyBatch) -> int:
    sizes: list[int] = []
    batch.map(lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    return sum(sizes)
