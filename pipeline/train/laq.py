"""The task of `cla train laq`: pairs of a store, the latent action model, and what keeps its codes in use."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from data_specs.actions import ACTION_COLUMN, ACTION_NAME
from data_specs.arrays import Array
from data_specs.batches import PairBatch
from data_specs.motion import STATISTICS_COLUMN, STATISTICS_NAME
from pipeline.config import RequestError
from pipeline.store.loader import Store
from pipeline.store.motion import motion_weights
from pipeline.store.pairs import PairIndex
from pipeline.train.data import PairReader, PairStream, StreamSampler, load_ahead, spread
from pipeline.train.laq_recipe import LaqRecipe
from pipeline.train.shard_reading import ShardReading
from pipeline.train.split import labelled_clips, split_clips
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train_config import TrainRecipe
from stages.draw import mix_seed
from stages.laq import LatentActionModel, known_motion
from stages.nsvq import perplexity

_INIT, _REPLACE = 1, 2
"""What a seed is for, so that no two uses draw the same numbers."""

_WARN_EVERY = 1000
"""Steps between two warnings of the same thing."""


class LaqTask(Task[PairBatch]):
    """Latent actions from the pairs of `store` at the recipe's offset.

    Raises RequestError when the store has no such pairs, or lacks a column that the model reads.
    """

    name: ClassVar[str] = "laq"
    recipe_type: ClassVar[type[TrainRecipe]] = LaqRecipe
    recipe: LaqRecipe

    def __init__(self, recipe: LaqRecipe, store: Store) -> None:
        sizes = store.manifest.sizes
        actions = sizes.get("A", 0) if recipe.model.targets.action else 0
        self.recipe = recipe.for_store(channels=sizes["C"], actions=actions)
        self.store = store
        self._keys = store.clips["key"].to_pylist()
        self.split = split_clips(self._keys, store.clips["split"].to_pylist(), recipe.split)
        self._columns = self._columns_of_model()
        seen = ACTION_COLUMN in self._columns
        self.labelled = labelled_clips(self._keys, self.split.train, recipe.labels.fraction) if seen else None
        self._reading = ShardReading([store], recipe.data) if recipe.data.order == "shards" else None
        self._plain = PairReader(store, self._columns, self.labelled)
        through = self._reading.stores[0] if self._reading else store
        self._reader = PairReader(through, self._columns, self.labelled)
        index = self._find_pairs()
        self.pairs = _of_clips(index, self.split.train)
        self.held_out = spread(_frames(_of_clips(index, self.split.validation)), recipe.train.validate_samples)
        if not len(self.pairs):
            raise RequestError(
                f"None of the {len(self.split.train)} training clips of {store.layout.url} has frames "
                f"{recipe.pairs.offset:g} s apart: set a smaller pairs.offset."
            )
        weights = self._motion_weights() if recipe.pairs.motion else None
        first = self.pairs.first
        by = self._reading.by(np.zeros(len(first), dtype=np.int64), first) if self._reading else None
        self._stream = PairStream(store, _frames(self.pairs), recipe.pairs, recipe.seed, weights, by)
        self._counted: Tensor | None = None
        self._replaced = 0
        self._warned = -_WARN_EVERY

    @classmethod
    def model_of(cls, recipe: LaqRecipe) -> LatentActionModel:
        """The model with fresh weights."""
        return LatentActionModel(recipe.model)

    def describe(self) -> Mapping[str, Any]:
        """The store, what its features were made by, and the split."""
        manifest = self.store.manifest
        return {
            "store": {
                "url": self.store.layout.url,
                "digest": self.store.digest,
                "sizes": dict(manifest.sizes),
                "models": [record.model_dump(mode="json") for record in manifest.models],
                "geometry": manifest.geometry,
            },
            "split": self.split.record(self._keys),
            "clips": {
                **self.split.keys(self._keys),
                **({} if self.labelled is None else {"labelled": [self._keys[i] for i in self.labelled]}),
            },
            "statistics": manifest.statistics or {},
        }

    def start(self, model: LatentActionModel, device: torch.device) -> None:
        """Feature statistics and first codes from training pairs: the first of the stream, in the order of training."""
        section = self.recipe.codebook
        batch_size = self.recipe.train.batch
        batches = -(-min(section.init_samples, len(self.pairs)) // batch_size)
        pairs = [self._reader[self._stream.take(range(i * batch_size, (i + 1) * batch_size))] for i in range(batches)]
        if "tokens" in self._columns:
            model.features.set(*_feature_statistics(pairs))
        for name, column in ((STATISTICS_NAME, STATISTICS_COLUMN), (ACTION_NAME, ACTION_COLUMN)):
            if column in self._columns:
                deviation = _deviation_of_change(pairs, name)
                model.change_of(name).set(torch.zeros_like(deviation), deviation)
        if section.init == "random":
            return
        model.eval()
        with torch.no_grad():
            latents = torch.cat([model.encode(batch.to(device)).continuous.cpu() for batch in pairs])
        model.train()
        model.quantiser.init_from(latents.flatten(0, 1), section.init, mix_seed(self.recipe.seed, _INIT))

    def batches(self, plan: BatchPlan) -> Iterator[PairBatch]:
        """Shuffled training pairs."""
        section, reading = self.recipe.train, self._reading
        sampler = reading.sampler(self._stream, plan, section) if reading else StreamSampler(self._stream, plan)
        try:
            yield from load_ahead(self._reader, sampler, section)
        finally:
            if reading:
                reading.close()

    def validation_batches(self, rank: int, world: int) -> Iterable[PairBatch]:
        """Pairs of held-out clips, in their order."""
        size = self.recipe.train.batch
        mine = range(rank * size, len(self.held_out), world * size)
        items = [self.held_out[start : start + size] for start in mine]
        return self._reading.held_out(self._plain, items) if self._reading else (self._plain[item] for item in items)

    def loss(self, model: nn.Module, batch: PairBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the model."""
        loss, metrics = model(batch, step.draw)
        return loss, metrics

    def keys(self, batch: PairBatch) -> list[str]:
        """Keys of the batch's clips."""
        clips, _ = self.store.clip_of(batch.first.index.cpu())
        return [self._keys[int(clip)] for clip in clips]

    def after_step(self, model: LatentActionModel, number: int) -> None:
        """Replace codes that are not used, on the schedule of the recipe."""
        section = self.recipe.codebook
        if number % section.replace_every == 0 and number <= section.replace_until * self.recipe.train.steps:
            self._replaced += model.quantiser.replace_unused(mix_seed(self.recipe.seed, _REPLACE, number))

    def log_metrics(self, model: LatentActionModel) -> dict[str, float]:
        """Codes used and perplexity, of the log's window and since the start; codes replaced in the window."""
        total = model.quantiser.total.cpu()
        window = total if self._counted is None else total - self._counted
        self._counted = total.clone()
        replaced, self._replaced = self._replaced, 0
        return {
            "codes_used": float((window > 0).sum()),
            "perplexity": float(perplexity(window)),
            "perplexity_total": float(perplexity(total)),
            "codes_replaced": float(replaced),
        }

    def warnings(self, metrics: Mapping[str, float], number: int) -> list[str]:
        """A codebook that collapses, and what to change."""
        section, codes = self.recipe.codebook, self.recipe.model.codes
        train = self.recipe.train
        # A window that chose few codes cannot be perplexed; and codes settle in the warm-up and the first replacements.
        chosen = train.log_every * train.batch * train.accumulate * self.recipe.model.tokens
        collapsed = metrics["perplexity"] < section.warn_below * codes
        early = number <= max(train.warmup, 5 * section.replace_every) or chosen < 4 * codes
        if early or not collapsed or number - self._warned < _WARN_EVERY:
            return []
        self._warned = number
        return [
            f"the codebook collapses: perplexity {metrics['perplexity']:.1f} at step {number} is under "
            f"{section.warn_below:g} of {codes} codes. Lower train.lr, replace unused codes more often or longer "
            "(codebook.replace_every, codebook.replace_until), take pairs with more motion (pairs.offset, "
            "pairs.motion), or ask for fewer codes (model.codes)."
        ]

    def state_dict(self) -> dict[str, Any]:
        """What the open window of the log has counted."""
        return {"counted": self._counted, "replaced": self._replaced, "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._counted, self._replaced, self._warned = state["counted"], state["replaced"], state["warned"]

    def _motion_weights(self) -> Array:
        if self._reading and not self.store.layout.files.is_local:
            url = self.store.layout.url
            raise RequestError(
                f"pairs.motion={self.recipe.pairs.motion:g} reads the points of every clip before the first step, and "
                f"{url} is far away: copy the store first (cla merge {url} --out FOLDER) and train on the copy, or set "
                "pairs.motion=0."
            )
        return motion_weights(self.store, self.pairs)

    def _find_pairs(self) -> PairIndex:
        offset, jitter = self.recipe.pairs.offset, self.recipe.pairs.jitter
        if jitter >= offset:
            raise RequestError(f"pairs.jitter={jitter:g} must be under pairs.offset={offset:g}: set a smaller one.")
        try:
            return self.store.pairs(offset)
        except ValueError as error:
            raise RequestError(
                f"The store at {self.store.layout.url} has no pairs at pairs.offset={offset:g}: {error}."
            ) from None

    def _columns_of_model(self) -> tuple[str, ...]:
        try:
            with torch.device("meta"):
                columns = LatentActionModel(self.recipe.model).columns
        except ValueError as error:
            raise RequestError(f"The recipe's model cannot be built: {error}.") from None
        lacking = [column for column in columns if column not in self.store.columns()]
        if lacking:
            raise RequestError(
                f"The model reads {', '.join(lacking)}, which the store at {self.store.layout.url} lacks; it has "
                f"{', '.join(self.store.columns())}. Change model.motion, vision or targets, or extract again."
            )
        return columns


def _of_clips(index: PairIndex, clips: Array) -> PairIndex:
    """The pairs of some clips."""
    mine = np.isin(index.clip, clips)
    chosen = {name: getattr(index, name)[mine] for name in ("first", "second", "clip", "apart")}
    return replace(index, **chosen, without=len(clips) - len(np.unique(chosen["clip"])))


def _frames(index: PairIndex) -> Array:
    """First and second frames i8 [n,2]."""
    return np.stack([index.first, index.second], axis=1)


def _deviation_of_change(pairs: list[PairBatch], name: str) -> Tensor:
    """Root mean square f4 [d] of how much the numbers of a whole frame change in a pair, where both are known."""
    sides = [(pair.first.extra[name], pair.second.extra[name]) for pair in pairs]
    if name == STATISTICS_NAME:
        sides = [(known_motion(first), known_motion(second)) for first, second in sides]
    change = torch.cat([second.double() - first.double() for first, second in sides])
    known = change.isfinite().all(1)
    if not bool(known.any()):
        return torch.ones(change.shape[1])
    return change[known].square().mean(0).sqrt().float()


def _feature_statistics(pairs: list[PairBatch]) -> tuple[Tensor, Tensor]:
    """Mean and deviation f4 [C] of the features of all points of the frames."""
    tokens = [frames.need_tokens() for pair in pairs for frames in (pair.first, pair.second)]
    weight = torch.cat([part.count for part in tokens]).double()[:, None]
    feat = torch.cat([part.feat for part in tokens]).double()
    mean = (feat * weight).sum(0) / weight.sum()
    variance = ((feat - mean).square() * weight).sum(0) / weight.sum()
    return mean.float(), variance.sqrt().float()
