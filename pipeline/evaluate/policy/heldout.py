"""`cla eval policy --open-loop`: a run's policy beside what was done on the held-out episodes of a store."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.actions import CHUNK_PAD_COLUMN
from data_specs.arrays import Array
from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.evaluate.encoding import training_keys
from pipeline.evaluate.policy.loading import LoadedPolicy
from pipeline.evaluate.policy.openloop import OpenLoop, dimension_names, measure
from pipeline.store.identity import differing_model
from pipeline.train.data import spread
from pipeline.train.policy_data import PolicyReader
from pipeline.train.policy_stores import PolicyStores, lacking_columns
from pipeline.train.split import split_clips
from pipeline.train_config import SplitSection

MOST = 2000
"""Moments that an error is measured at, unless told otherwise."""

BATCH = 64
"""Moments that the policy sees at once: a constant, so that a result does not depend on anything else."""


def open_loop(
    run: Path,
    store: str,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    most: int = MOST,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> OpenLoop:
    """The error of a run's chunks on up to `most` moments, spread over episodes that it was not trained on.

    Raises:
        RequestError: there is no such run or store, they do not fit together, or no episode is held out.
    """
    loaded = LoadedPolicy.open(run, checkpoint=checkpoint, device=device)
    stores = PolicyStores.open([store])
    _refuse_misfit(loaded, stores)
    clips = held_out_clips(loaded, stores)
    moments = spread(_moments_with_actions(stores, clips), most)
    reader = PolicyReader(stores, loaded.columns, horizon=loaded.horizon)
    action = loaded.run.statistics["action"]

    def batches() -> Iterator[PolicyBatch]:
        for start in range(0, len(moments), BATCH):
            yield reader[moments[start : start + BATCH]].to(loaded.device)

    found = measure(
        loaded.model, batches(), mean=action["mean"], seed=seed, progress=lambda done: progress(done, len(moments))
    )
    return OpenLoop(
        policy=loaded.facts(),
        store={"url": stores.stores[0].layout.url, "digest": stores.stores[0].digest},
        names=dimension_names(stores.sizes.action),
        frames=len(moments),
        clips=len(np.unique(stores.clip_of(moments))),
        spread=np.asarray(action["std"], dtype=np.float64),
        **found,
    )


def held_out_clips(loaded: LoadedPolicy, stores: PolicyStores) -> Array:
    """Clips i8 [n] on the validation side of the run's split that it was not trained on, whose robot data is good.

    RequestError when there is none.
    """
    (store,) = stores.stores
    split: dict[str, Any] = loaded.run.config["split"]
    sides = split_clips(stores.keys, store.clips["split"].to_pylist(), SplitSection(**split))
    trained, bad = training_keys(loaded.run), stores.bad_robot_data()
    clips = [clip for clip in sides.validation.tolist() if stores.keys[clip] not in trained and clip not in bad]
    if not clips:
        raise RequestError(
            f"The store at {stores.named} has no episode that the run at {loaded.run.path} was not trained on: give "
            "one with held-out episodes, or extract more."
        )
    return np.array(clips, dtype=np.int64)


def _moments_with_actions(stores: PolicyStores, clips: Array) -> Array:
    """Those frames i8 [n] of some clips from which at least one action leads on."""
    done = np.concatenate([stores.array(CHUNK_PAD_COLUMN, int(clip))[:, 0] for clip in clips])
    return np.asarray(stores.frames_of(clips)[~done])


def _refuse_misfit(loaded: LoadedPolicy, stores: PolicyStores) -> None:
    """RequestError unless a store has what a policy reads, of the same robot and by the same frozen models."""
    where = f"the run at {loaded.run.path}"
    encoders = {"language" if model.role == "text" else model.role: model.name for model in loaded.models}
    if lacking := lacking_columns(stores, loaded.columns, chunk=loaded.horizon, encoders=encoders):
        raise RequestError(f"The store at {stores.named} lacks what {where} needs. " + "; ".join(lacking) + ".")
    trained, sizes = loaded.run.store.get("sizes", {}), stores.sizes
    for symbol, what, found in (("A", "actions", sizes.action), ("S", "states", sizes.state)):
        expected = int(trained.get(symbol, 0))
        if found != expected:
            raise RequestError(
                f"The store at {stores.named} has {what} of {found} dimensions, {where} was trained on {expected}: "
                "give a store of the same robot."
            )
    roles = loaded.roles
    theirs = [model for model in stores.stores[0].manifest.models if model.role in roles]
    if differs := differing_model([model for model in loaded.models if model.role in roles], theirs):
        raise RequestError(
            f"The store at {stores.named} was made by another {differs.role} ({differs.theirs}) than the one behind "
            f"{where} ({differs.ours}): extract it with the same weights."
        )
