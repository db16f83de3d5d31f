"""Latent actions as what a policy foresees, or what tells it actions: files of `cla label`, laid beside the frames of
stores.

Shape legend: F frames of all stores, K codes a moment, L numbers behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.config import RequestError
from pipeline.foreign import shortened
from pipeline.label_file import Codes, read_codes
from pipeline.train.policy_stores import PolicyStores
from stages.heads.latent import LatentConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class CodesOfFrames:
    """`codes` i2 [F,K] of the frames of some stores, -1 where a frame has none; `facts` of the files, by store.

    `latents` f4 [F,L] are the vectors that the codes stand for, 0 where a frame has none; None where nobody asked.
    """

    codes: Array
    facts: tuple[dict[str, Any], ...]
    latents: Array | None = None

    def need_latents(self) -> Array:
        """The latents, by a caller that has asked for them."""
        assert self.latents is not None, "they were not asked for"
        return self.latents

    def describe(self) -> dict[str, Any]:
        """For `run.json`: who made the codes, at which offset, and the file of each store."""
        first = self.facts[0]
        return {
            "run": first["run"],
            "offset_seconds": first["offset_seconds"],
            "files": [facts["path"] for facts in self.facts],
        }


def codes_of_frames(
    paths: Sequence[Path], stores: PolicyStores, *, head: LatentConfig | None, latents: bool = False
) -> CodesOfFrames:
    """The codes of `paths` for each frame of the stores.

    Args:
        paths: a file a store, in any order.
        stores: whose clips the files are of.
        head: what is to foresee them; None where they are not foreseen.
        latents: whether the vectors that they stand for are wanted.

    Raises:
        RequestError: a file that is none of `cla label`, of another store, of another run or offset than the others,
            or of other codes than the model's; a store without a file; codes alone where latents are wanted.
    """
    files = {path: read_codes(path, latents=latents) for path in paths}
    facts, parts = [], []
    for number, store in enumerate(stores.stores):
        mine = [path for path, file in files.items() if file.facts["store"]["digest"] == store.digest]
        if len(mine) != 1:
            raise RequestError(_not_one(store.layout.url, mine, files))
        file = files.pop(mine[0])
        if head is not None:
            _check(mine[0], file, head)
        facts.append({**file.facts, "path": str(mine[0].resolve())})
        parts.append((_rows(mine[0], file, stores, number), file))
    if files:
        raise RequestError(f"{next(iter(files))} holds codes of a store that is not trained on: leave it out.")
    made = {(one["run"]["weights_sha256"], one["offset_seconds"]) for one in facts}
    if len(made) > 1:
        raise RequestError(
            "The files of codes are of different runs or offsets, so that a code means one thing here and another "
            f"there: {', '.join(_made_by(one) for one in facts)}. Label all stores with one run."
        )
    codes = np.full((int(stores.start[-1]), parts[0][1].codes.shape[1]), -1, dtype=np.int16)
    vectors = None
    if latents:
        vectors = np.zeros((len(codes), _latents(parts[0][1]).shape[1]), dtype=np.float32)
    for rows, file in parts:
        codes[rows] = file.codes
        if vectors is not None:
            vectors[rows] = _latents(file)
    return CodesOfFrames(codes=codes, facts=tuple(facts), latents=vectors)


def _latents(file: Codes) -> Array:
    assert file.latents is not None, "they were asked for"
    return file.latents


def _rows(path: Path, file: Codes, stores: PolicyStores, number: int) -> Array:
    """The frame of each moment of a file. RequestError for one that is not in its store."""
    clips = stores.clips_of_store(number)
    first = {stores.keys[clip]: int(stores.start[clip]) for clip in clips}
    end = {stores.keys[clip]: int(stores.start[clip + 1]) for clip in clips}
    rows = np.array([first.get(key, -1) for key in file.clip], dtype=np.int64)
    last = np.array([end.get(key, -1) for key in file.clip], dtype=np.int64)
    rows = np.where(rows < 0, rows, rows + file.frame)
    if outside := np.flatnonzero((rows < 0) | (rows >= last)).tolist():
        key, frame = file.clip[outside[0]], int(file.frame[outside[0]])
        raise RequestError(
            f"{path} has codes of frame {frame} of clip {shortened(repr(key), 80)}, which the store at"
            f" {stores.stores[number].layout.url} does not have: label the store anew."
        )
    return rows


def refuse_other_codes(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """RequestError unless two descriptions of codes (`CodesOfFrames.describe`) are of the same run and offset."""
    mine, theirs = ((facts["run"]["weights_sha256"], facts["offset_seconds"]) for facts in (before, now))
    if mine != theirs:
        raise RequestError(
            f"The run at {run} learns the codes of {_made_by(before)}, and these are of {_made_by(now)}: give the same "
            "file to --codes (or none: the run knows it), or name another --out."
        )


def _made_by(facts: dict[str, Any]) -> str:
    run = facts.get("run", {})
    return (
        f"run {run.get('name')} at step {run.get('step')} (weights {str(run.get('weights_sha256'))[:8]}, "
        f"{facts.get('offset_seconds')} s apart)"
    )


def _not_one(url: str, mine: Sequence[Path], files: dict[Path, Codes]) -> str:
    if mine:
        return f"There are several files of codes of the store at {url} ({', '.join(map(str, mine))}): give one."
    if files:
        others = ", ".join(map(str, files))
        return (
            f"No file of codes is of the store at {url} as it is now; of other stores: {others}. Label this one: "
            f"cla label --run RUN --store {url} --out codes.parquet"
        )
    return (
        "objective=latent and labels.pseudo are taught by the codes of a latent action model, and there are none for "
        f"the store at {url}: give --codes FILE.parquet, made by cla label --run RUN --store {url} --out FILE.parquet "
        "(for labels.pseudo with --embeddings)"
    )


def _check(path: Path, file: Codes, head: LatentConfig) -> None:
    if file.codes.shape[1] != head.tokens:
        raise RequestError(
            f"{path} has {file.codes.shape[1]} codes a pair and the model foresees {head.tokens}: set "
            f"model.latent.tokens={file.codes.shape[1]}."
        )
    largest = int(file.codes.max(initial=0))
    if largest >= head.codes:
        raise RequestError(
            f"{path} has a code {largest} and the model chooses of {head.codes}: set model.latent.codes to the size of "
            "the run's codebook."
        )
