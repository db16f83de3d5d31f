"""Moments of demonstrations as batches: which ones, how often, in which order, with what in them.

A moment is a frame of a store and what was done from it on. The order is a function of seed and place, as that of
pairs (`pipeline.train.data`): a run resumes in the middle of an epoch, and processes share the stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data_specs.actions import CHUNK_COLUMN, CHUNK_NAME, CHUNK_PAD_COLUMN, CHUNK_PAD_NAME
from data_specs.arrays import Array
from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.store.pixels import decode_images
from pipeline.store.statistics import robot_summary
from pipeline.train.data import Stream, StreamSampler, load_ahead, spread
from pipeline.train.policy_codes import CodesOfFrames
from pipeline.train.policy_recipe import PolicyRecipe
from pipeline.train.policy_sections import DemonstrationsSection, MomentsSection
from pipeline.train.policy_stores import LANGUAGE_COLUMN, PolicyStores, lacking_columns, task_groups
from pipeline.train.pseudo_labels import PseudoLabels
from pipeline.train.shard_reading import ShardReading
from pipeline.train.split import Split, labelled_clips, split_clips
from pipeline.train.task import BatchPlan
from pipeline.train_config import SplitSection

_SHOWN = 3
_FIRST_BATCH = 32


class PolicyReader(Dataset[PolicyBatch]):
    """Moments i8 [n] (frames, counted through the stores) → a batch, with the columns of the model and no others.

    Args:
        stores: where the frames are.
        columns: what the model reads; pictures are decoded for `rgb` and `views/NAME` alone.
        horizon: steps of action, cut from the stores' chunks; 0 for none.
        codes: of latent actions, where these are learned instead.
        pseudo: where the actions of some of the frames come from.
    """

    def __init__(
        self,
        stores: PolicyStores,
        columns: Sequence[str],
        *,
        horizon: int,
        codes: CodesOfFrames | None = None,
        pseudo: PseudoLabels | None = None,
    ) -> None:
        self._stores, self._horizon, self._codes, self._pseudo = stores, horizon, codes, pseudo
        self._speaks = LANGUAGE_COLUMN in columns
        wanted = [name for name in columns if name != LANGUAGE_COLUMN]
        self._chunks = [CHUNK_COLUMN, CHUNK_PAD_COLUMN] if horizon else []
        self._columns = tuple(dict.fromkeys([*wanted, *self._chunks]))

    def __getitem__(self, moments: Array) -> PolicyBatch:
        frames = self._stores.batch(moments, self._columns)
        batch = PolicyBatch(frames=frames)
        if self._horizon:
            extra = dict(frames.extra)
            action, is_pad = (extra.pop(name)[:, : self._horizon] for name in (CHUNK_NAME, CHUNK_PAD_NAME))
            batch = replace(
                batch, frames=replace(frames, extra=extra), action=action.contiguous(), is_pad=is_pad.contiguous()
            )
            if self._pseudo is not None:
                batch = self._pseudo.put_into(batch, moments)
        if self._codes is not None:
            batch = replace(batch, codes=torch.from_numpy(self._codes.codes[moments].astype(np.int64)))
        if self._speaks:
            batch = replace(batch, language=self._stores.language(self._stores.clip_of(moments)))
        return with_pictures(batch)


def with_pictures(batch: PolicyBatch) -> PolicyBatch:
    """The batch with its encoded pictures decoded into `images`; as it is where it has none."""
    frames = batch.frames
    images = {**({} if frames.rgb is None else {"rgb": frames.rgb}), **frames.views}
    if not images:
        return batch
    decoded = {name: decode_images(pictures) for name, pictures in images.items()}
    return replace(batch, frames=replace(frames, rgb=None, views={}), images={**batch.images, **decoded})


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """Which moments count.

    Attributes:
        split: clips to train on and held-out ones. labelled: training clips whose actions are seen; None where codes
            are learned. unseen: training clips that are to have pseudo-labels.
        train, held_out: moments i8 [n], [m].
        notes: sentences about what was left out.
        left_out: bad clips. without: training moments that have nothing to learn: no code, or no action.
    """

    split: Split
    labelled: Array | None
    unseen: Array
    train: Array
    held_out: Array
    notes: tuple[str, ...]
    left_out: Array
    without: int


class PolicyData:
    """Training and validation batches of `stores` by a recipe, for a model that reads `columns`.

    `horizon` steps of action are learned; or `codes`, where the recipe is for latent actions. Where it asks for
    pseudo-labels, they are read from the codes.

    Raises RequestError when a store lacks what the model reads or learns, or nothing is left to train on.
    """

    def __init__(
        self,
        stores: PolicyStores,
        recipe: PolicyRecipe,
        columns: Sequence[str],
        *,
        horizon: int,
        codes: CodesOfFrames | None = None,
    ) -> None:
        self.stores, self._section = stores, recipe.train
        learned = codes if recipe.latent else None
        steps = 0 if learned is not None else horizon
        if lacking := lacking_columns(stores, columns, chunk=steps, encoders=recipe.encoders.behind()):
            raise RequestError(f"The store at {stores.named} lacks what the model needs. " + "; ".join(lacking) + ".")
        _refuse_mixed_pictures(stores, columns)
        self._robot = stores.sizes.state > 0, steps > 0
        self.chosen = _choose(stores, learned, recipe.labels, recipe.split)
        self.pseudo = None
        if recipe.labels.pseudo:
            assert codes is not None and self.chosen.labelled is not None, "the command has seen to it"
            self.pseudo = PseudoLabels.fit(
                stores,
                codes,
                labelled=self.chosen.labelled,
                unseen=self.chosen.unseen,
                horizon=steps,
                state="state" in columns,
            )
            self.chosen = _that_are_told(self.chosen, self.pseudo, stores)
        self._held_out = spread(self.chosen.held_out, recipe.train.validate_samples)
        self._plain = PolicyReader(stores, columns, horizon=steps, codes=learned, pseudo=self.pseudo)
        self.reader, self._reading, by = self._plain, None, None
        if recipe.data.order == "shards":
            self._reading = ShardReading(stores.stores, recipe.data)
            through = PolicyStores(self._reading.stores)
            self.reader = PolicyReader(through, columns, horizon=steps, codes=learned, pseudo=self.pseudo)
            by = self._reading.by(*stores.in_stores(self.chosen.train))
        self._stream = Stream(self.chosen.train, recipe.seed, chances(stores, self.chosen.train, recipe.data), by)

    def batches(self, plan: BatchPlan) -> Iterator[PolicyBatch]:
        """Training batches from the plan's start on, without end."""
        section, reading = self._section, self._reading
        sampler = reading.sampler(self._stream, plan, section) if reading else StreamSampler(self._stream, plan)
        try:
            yield from load_ahead(self.reader, sampler, section)
        finally:
            if reading:
                reading.close()

    def first(self, samples: int) -> Iterator[PolicyBatch]:
        """Batches of the first so many moments of the stream: the same in every process, whatever its batch."""
        count = min(samples, len(self.chosen.train))
        for start in range(0, count, _FIRST_BATCH):
            yield self.reader[self._stream.take(range(start, min(start + _FIRST_BATCH, count)))]

    def validation_batches(self, rank: int, world: int) -> Iterable[PolicyBatch]:
        """Batches of moments of held-out clips, in their order."""
        size = self._section.batch
        mine = range(rank * size, len(self._held_out), world * size)
        items = [self._held_out[start : start + size] for start in mine]
        return self._reading.held_out(self._plain, items) if self._reading else (self._plain[item] for item in items)

    def keys(self, batch: PolicyBatch) -> list[str]:
        """Keys of the batch's clips."""
        return [self.stores.keys[clip] for clip in self.stores.clip_of(batch.frames.index.cpu().numpy())]

    def statistics(self) -> dict[str, Any]:
        """Of states over the training clips and of actions over those of them whose actions are seen."""
        has_state, has_action = self._robot
        found: dict[str, Any] = {}
        for name, wanted, clips in (
            ("state", has_state, self.chosen.split.train),
            ("action", has_action, self.chosen.labelled),
        ):
            if wanted and clips is not None:
                good = clips[~np.isin(clips, self.chosen.left_out)]
                found[name] = robot_summary(
                    [(store, self.stores.in_store(good, i)) for i, store in enumerate(self.stores.stores)], name
                )
        return found

    def describe(self) -> dict[str, Any]:
        """For `run.json` and `split.json`: store, split, clips and statistics."""
        keys, chosen = self.stores.keys, self.chosen
        counts = {"moments": len(chosen.train), "held_out_moments": len(chosen.held_out), "without": chosen.without}
        clips = chosen.split.keys(keys)
        if chosen.labelled is not None:
            counts["labelled"] = len(chosen.labelled)
            clips["labelled"] = [keys[clip] for clip in chosen.labelled]
        if self.pseudo is not None:
            counts["pseudo"] = len(chosen.unseen)
            clips["pseudo"] = [keys[clip] for clip in chosen.unseen]
        if len(chosen.left_out):
            clips["left_out"] = [keys[clip] for clip in chosen.left_out]
        pseudo = {} if self.pseudo is None else {"pseudo": self.pseudo.describe()}
        return {
            "store": {**self.stores.describe(), **pseudo},
            "split": {**chosen.split.record(keys), **counts},
            "clips": clips,
            "statistics": self.statistics(),
        }


def chances(stores: PolicyStores, moments: Array, section: MomentsSection) -> Array | None:
    """In proportion to what f8 [n] the moments are drawn; None where each is taken once an epoch."""
    weights = section.weights
    if weights and (len(weights) != len(stores.stores) or min(weights) <= 0):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise RequestError(
            f"{len(weights)} weights ({shown}) for {len(stores.stores)} stores: give one above 0 for each, in the "
            "order of --store."
        )
    if section.balance == "none" and not weights:
        return None
    clip = stores.clip_of(moments)
    owner = stores.store_of(clip)
    chance = np.ones(len(moments))
    if section.balance != "none":
        clips, place = np.unique(clip, return_inverse=True)
        group = task_groups(stores, clips, section.balance)[place]
        if weights:
            group = group * len(weights) + owner
        _, place, count = np.unique(group, return_inverse=True, return_counts=True)
        chance = 1.0 / count[place]
    for number, weight in enumerate(weights):
        mine = owner == number
        if not mine.any():
            raise RequestError(
                f"The store at {stores.stores[number].layout.url} has no moment to train on: leave it out."
            )
        chance[mine] *= weight / chance[mine].sum()
    return chance


def _choose(
    stores: PolicyStores, codes: CodesOfFrames | None, labels: DemonstrationsSection, section: SplitSection
) -> Chosen:
    bad = stores.bad_robot_data()
    notes = []
    if bad:
        some = "; ".join(f"{stores.keys[clip]}: {problem}" for clip, problem in list(bad.items())[:_SHOWN])
        notes.append(
            f"{len(bad)} clips are left out, for their robot data is bad ({some}). `cla extract` refuses such clips: "
            "mend the recording and extract it again."
        )
    split = _split(stores, section)
    clips, held_out = (side[~np.isin(side, list(bad))] for side in (split.train, split.validation))
    labelled, unseen = None, clips[:0]
    if codes is None:
        labelled = labelled_clips(stores.keys, clips, labels.fraction, labels.max_clips)
        unseen = np.setdiff1d(clips, labelled) if labels.pseudo else unseen
        clips = np.union1d(labelled, unseen)
    moments = {"train": stores.frames_of(clips), "held_out": stores.frames_of(held_out)}
    usable = {name: frames[_usable(stores, frames, codes)] for name, frames in moments.items()}
    without = len(moments["train"]) - len(usable["train"])
    if codes is not None and without:
        notes.append(f"{without} of {len(moments['train'])} training frames have no code and are left out.")
    if not len(usable["train"]):
        what = "a code" if codes is not None else "an action"
        raise RequestError(
            f"No frame of the {len(clips)} training clips of {stores.named} has {what} to learn"
            f"{': ' + notes[0] if notes else ''}. Give a store with demonstrations."
        )
    return Chosen(
        split=split,
        labelled=labelled,
        unseen=unseen,
        train=usable["train"],
        held_out=usable["held_out"],
        notes=tuple(notes),
        left_out=np.array(sorted(bad), dtype=np.int64),
        without=without,
    )


def _that_are_told(chosen: Chosen, pseudo: PseudoLabels, stores: PolicyStores) -> Chosen:
    """The choice without the frames that no pseudo-label is told of: of clips that no pair of frames fits into."""
    silent = np.isin(stores.clip_of(chosen.train), chosen.unseen) & ~pseudo.decoded[chosen.train]
    notes = [*chosen.notes, pseudo.note()]
    if silent.any():
        notes.append(f"{silent.sum()} training frames are of clips without a code and are left out.")
    return replace(chosen, train=chosen.train[~silent], notes=tuple(notes), without=chosen.without + int(silent.sum()))


def _split(stores: PolicyStores, section: SplitSection) -> Split:
    """Each store by its own rule."""
    parts, rules = [], []
    for number, store in enumerate(stores.stores):
        mine = stores.clips_of_store(number)
        part = split_clips(store.clips["key"].to_pylist(), store.clips["split"].to_pylist(), section)
        parts.append((mine[part.train], mine[part.validation]))
        rules.append(part.rule)
    train, validation = (np.concatenate(side) for side in zip(*parts, strict=True))
    return Split(train=train, validation=validation, rule="; ".join(dict.fromkeys(rules)))


def _usable(stores: PolicyStores, frames: Array, codes: CodesOfFrames | None) -> Array:
    """Which frames bool [n] have something to learn: a code, or at least one action that is no padding."""
    if codes is not None:
        return np.asarray(codes.codes[frames, 0] >= 0)
    clips = np.unique(stores.clip_of(frames))
    padded = [stores.array(CHUNK_PAD_COLUMN, int(clip))[:, 0] for clip in clips]
    return ~np.concatenate(padded) if padded else np.zeros(0, dtype=bool)


def _refuse_mixed_pictures(stores: PolicyStores, columns: Sequence[str]) -> None:
    """RequestError where stores show a camera at different sizes: a batch has one size a camera."""
    shown = [name for name in columns if name == "rgb" or name.startswith("views/")]
    if len(stores.stores) == 1 or not shown:
        return
    sizes = [_sizes(with_pictures(PolicyBatch(frames=store.batch([0], columns=shown)))) for store in stores.stores]
    for store, found in zip(stores.stores, sizes, strict=True):
        for name, size in found.items():
            if size != sizes[0][name]:
                first = sizes[0][name]
                raise RequestError(
                    f"{store.layout.url} has pictures of {size[1]}x{size[0]} pixels of camera {name}, "
                    f"{stores.stores[0].layout.url} of {first[1]}x{first[0]}: extract them at one size."
                )


def _sizes(batch: PolicyBatch) -> dict[str, tuple[int, int]]:
    return {name: (pictures.shape[1], pictures.shape[2]) for name, pictures in batch.images.items()}
