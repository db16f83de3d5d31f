"""Which clips are trained on and which are held out: a function of their keys and splits, never of their order."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.config import RequestError
from pipeline.train_config import SplitSection

_TRAIN, _VALIDATION, _NEVER = ("train",), ("val", "validation"), ("test",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Clips i8 [n] to train on and i8 [m] to validate on, with the sentence that says how they were told apart."""

    train: Array
    validation: Array
    rule: str

    def record(self, keys: Sequence[str]) -> dict[str, Any]:
        """For `run.json`: the rule, how many clips each side has, and a digest of the held-out keys."""
        held_out = "\n".join(sorted(keys[int(i)] for i in self.validation))
        return {
            "rule": self.rule,
            "train": len(self.train),
            "validation": len(self.validation),
            "validation_digest": hashlib.sha256(held_out.encode()).hexdigest(),
        }

    def keys(self, keys: Sequence[str]) -> dict[str, Any]:
        """For `split.json`: every key of both sides."""
        sides = {"train": self.train, "validation": self.validation}
        return {"rule": self.rule, **{name: [keys[int(i)] for i in clips] for name, clips in sides.items()}}


def split_clips(keys: Sequence[str], splits: Sequence[str], section: SplitSection) -> Split:
    """Tell training clips from held-out ones. Clips of a test split are neither.

    A store with clips of `train` and of `val` (or `validation`) is split so. Else the hash of a clip's key decides, so
    that a clip is on the same side in every store. With a share above 0 and at least two clips, one is held out.

    Raises RequestError when no clip is left to train on.
    """
    names = np.array(splits, dtype=object)
    train, validation = np.isin(names, _TRAIN), np.isin(names, _VALIDATION)
    rule = "the store's splits"
    if not (train.any() and validation.any()):
        place = np.array([hash_share(key) for key in keys])
        usable = ~np.isin(names, _NEVER)
        validation = usable & (place < section.validation)
        if section.validation > 0 and usable.sum() > 1 and not validation.any():
            validation[np.flatnonzero(usable)[place[usable].argmin()]] = True
        train = usable & ~validation
        rule = f"hash of the clip's key, {section.validation:g} held out"
    if not train.any():
        known = ", ".join(sorted(set(splits))) or "none"
        raise RequestError(f"The store has no clips to train on; its splits are: {known}. Expected some of train.")
    return Split(train=np.flatnonzero(train), validation=np.flatnonzero(validation), rule=rule)


def labelled_clips(keys: Sequence[str], clips: Array, fraction: float, most: int = 0) -> Array:
    """The clips i8 [m], sorted, whose actions are seen: those with the least hashes of their keys, rounded up.

    So the clips of a smaller share are among those of a larger one. `most` is the greatest number; 0 for any.
    """
    ordered = sorted(clips.tolist(), key=lambda clip: hash_share(keys[clip]))
    count = math.ceil(fraction * len(ordered))
    return np.sort(np.asarray(ordered[: min(count, most) if most else count], dtype=np.int64))


def hash_share(key: str) -> float:
    """A number in [0, 1) from a key, the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2.0**64
