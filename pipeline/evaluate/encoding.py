"""A run's latent action model beside a store: the pairs it is asked about, and what it makes of them.

Shape legend: n pairs, K code tokens, L code width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_specs.arrays import Array
from data_specs.batches import PairBatch
from data_specs.shards import Manifest, ModelRecord
from pipeline.config import FailedError, RequestError
from pipeline.foreign import read_json
from pipeline.store import StoreRequestError, open_store
from pipeline.store.identity import differing_model
from pipeline.store.pixels import pairs_with_pixels
from pipeline.train.checkpoint import SPLIT, Which
from pipeline.train.run import Run
from pipeline.train.split import split_clips
from pipeline.train_config import SplitSection
from stages.laq import LatentActionModel

if TYPE_CHECKING:
    from pipeline.store.loader import Store
    from pipeline.store.pairs import PairIndex

MAX_SPLIT = 1 << 30
"""Bytes of the list of a run's clips."""

BATCH = 64
"""Pairs that the model sees at once: a constant, so that a result does not depend on how much else was asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """What a model makes of n pairs.

    `codes` i8 [n,K], `quantised` and `continuous` (before quantisation) f4 [n,K,L], `distance` f4 [n,K] between them.
    """

    codes: Array
    quantised: Array
    continuous: Array
    distance: Array

    @classmethod
    def joined(cls, parts: Sequence["Latents"]) -> "Latents":
        """The rows of all parts, in order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A trained `model` of `run` on `device`, in evaluation mode, and the `store` whose pairs it labels."""

    run: Run
    store: "Store"
    model: LatentActionModel
    device: torch.device

    @classmethod
    def open(cls, run: Path, store: str, *, split: str | None = None, device: torch.device) -> "Encoder":
        """The best checkpoint of a run, and a store (or one split of it) that fits it.

        Raises:
            RequestError: there is no run or store, the run is of another task, or the store's features are not those
                that the run was trained on.
        """
        opened = Run.open(run)
        if opened.task != "laq":
            raise RequestError(
                f"The run at {run} is of task {opened.task}, which has no latent actions: give one of `cla train laq`."
            )
        try:
            data = open_store(store, split=split)
        except StoreRequestError as error:
            raise RequestError(str(error)) from None
        refuse_other_features(opened, data.manifest, store)
        model = opened.load_model(device)
        assert isinstance(model, LatentActionModel)
        return cls(run=opened, store=data, model=model, device=device)

    @property
    def offset(self) -> float:
        """Seconds between the frames of a pair, as in training."""
        return float(self.run.config["pairs"]["offset"])

    @property
    def codes(self) -> int:
        """Codes of the codebook."""
        return self.model.config.codes

    def pairs(self) -> "PairIndex":
        """All pairs of the store at the run's offset. RequestError when there is none."""
        try:
            return self.store.pairs(self.offset)
        except ValueError as error:
            raise RequestError(
                f"The store at {self.store.layout.url} has no pairs for this run, which was trained on frames "
                f"{self.offset:g} s apart: {error}."
            ) from None

    def sides(self) -> tuple[Array, Array]:
        """Clips of the store to fit probes from and held-out ones to judge them by, i8 each.

        The split is that of training: by the run's rule, so that a clip is on the same side in every store; and none
        that the run was trained on is ever held out. RequestError when there is nothing to fit from.
        """
        keys, splits = (self.store.clips[name].to_pylist() for name in ("key", "split"))
        split = split_clips(keys, splits, SplitSection(**self.run.config["split"]))
        trained = training_keys(self.run)
        unseen = [i for i in split.validation.tolist() if keys[i] not in trained]
        return split.train, np.array(unseen, dtype=np.int64)

    def batches(self, pairs: "PairIndex", rows: Array, columns: Sequence[str] = ()) -> Iterator[PairBatch]:
        """The pairs `rows` in batches of 64, on the device, with the columns of the model and `columns`."""
        view = self.store.pair_view(pairs, tuple(dict.fromkeys([*self.model.columns, *columns])))
        for start in range(0, len(rows), BATCH):
            yield pairs_with_pixels(view.__getitems__(rows[start : start + BATCH].tolist())).to(self.device)

    def encode(self, pairs: "PairIndex", rows: Array) -> Latents:
        """The latents of the pairs `rows`, in that order."""
        return Latents.joined([self.encode_batch(batch) for batch in self.batches(pairs, rows)])

    @torch.inference_mode()
    def encode_batch(self, batch: PairBatch) -> Latents:
        """The latents of a batch."""
        out = self.model.encode(batch)
        return Latents(**{f.name: getattr(out, f.name).cpu().numpy() for f in fields(Latents)})

    def run_facts(self) -> dict[str, Any]:
        """What names the model, wherever its folder is; see `run_facts`."""
        return run_facts(self.run, self.model)


def run_facts(run: Run, model: torch.nn.Module, which: Which = "best") -> dict[str, Any]:
    """What names a run's model, wherever its folder is: run, recipe, step, and the SHA-256 of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "name": Path(run.path).resolve().name,
        "task": run.task,
        "recipe": run.recipe,
        "step": run.checkpoint(which).step,
        "weights_sha256": digest.hexdigest(),
        "store_digest": run.store_digest,
    }


def refuse_other_features(run: Run, manifest: Manifest, store: str) -> None:
    """RequestError unless a store's features are of the kind that a run was trained on.

    Another store is fine, and what probes are for; features of other frozen models, or of another width, are not: the
    run's statistics and weights mean nothing there.
    """
    trained = run.store
    width, expected = manifest.sizes["C"], trained["sizes"]["C"]
    if width != expected:
        raise RequestError(
            f"The store at {store} has features of {width} channels, the run at {run.path} was trained on {expected}: "
            "extract the store with the recipe of the run's store, or train a run on this one."
        )
    models = [ModelRecord.model_validate(model) for model in trained["models"]]
    if differs := differing_model(models, manifest.models):
        raise RequestError(
            f"The store at {store} was made by another {differs.role} ({differs.theirs}) than the one behind the run "
            f"at {run.path} ({differs.ours}): extract it with the same weights, or train a run on it."
        )


def training_keys(run: Run) -> set[str]:
    """Keys of the clips that a run was trained on. FailedError when the run does not say."""
    path = Path(run.path) / SPLIT
    try:
        return set(read_json(path, limit=MAX_SPLIT)["train"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedError(
            f"{path}, which says what clips the run was trained on, cannot be read ({error}): without it nothing can "
            "be held out. Train the run anew."
        ) from error
