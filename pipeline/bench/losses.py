"""What smaller stores lose: features in a byte, no points, every second frame; and what it does to a model's codes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, PairBatch
from data_specs.quantise import float_features, quantise
from pipeline.devices import choose_device
from pipeline.store.loader import Store

if TYPE_CHECKING:
    from pipeline.evaluate.encoding import Encoder
    from pipeline.store.pairs import PairIndex

FRAMES, PAIRS = 256, 1024
"""At most so many frames and pairs are judged, spread over the store."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An option: bytes a frame that it saves, the error of features, the share of codes it changes (None: no model).

    `cosine` is the mean over tokens, `relative_l2` of all features together; both None where tokens have no partner.
    """

    option: str
    saved: float
    cosine: float | None
    relative_l2: float | None
    changed_codes: float | None
    note: str = ""

    def __str__(self) -> str:
        parts = [f"{self.option}: {self.saved:,.0f} bytes a frame saved"]
        if self.cosine is not None and self.relative_l2 is not None:
            parts.append(f"features: cosine {self.cosine:.6f}, relative L2 {self.relative_l2:.2%}")
        if self.changed_codes is not None:
            parts.append(f"{self.changed_codes:.2%} of codes change")
        return ", ".join([*parts, self.note] if self.note else parts)


def losses(store: Store, run: Path | None) -> tuple[Loss, ...]:
    """What each option would cost this store. RequestError for a run that does not fit it."""
    by_array: dict[str, float] = {}
    for sidecar in store.layout.sidecars():
        for name, entry in sidecar.arrays.items():
            by_array[name] = by_array.get(name, 0.0) + entry.bytes / store.num_frames
    encoder = None
    if run is not None:
        from pipeline.evaluate.encoding import Encoder

        encoder = Encoder.open(run, store.layout.url, device=choose_device("cpu"))
    found = []
    if "tokens/scale" not in by_array:
        cosine, relative = feature_error(store)
        found.append(
            Loss(
                option="tokens.dtype=int8",
                saved=by_array["tokens/feat"] / 2 - 2 * store.manifest.sizes["C"],
                cosine=cosine,
                relative_l2=relative,
                changed_codes=None if encoder is None else _changed(encoder, as_int8),
            )
        )
    if store.manifest.sizes["P"]:
        needs = [] if encoder is None else [name for name in encoder.model.columns if name.startswith("points")]
        found.append(
            Loss(
                option="store.points=false",
                saved=sum(size for name, size in by_array.items() if name.startswith("points/")),
                cosine=1.0,
                relative_l2=0.0,
                changed_codes=None if encoder is None or needs else 0.0,
                note=f"the model needs {', '.join(needs)}" if needs else "",
            )
        )
    found.append(
        Loss(
            option="every second frame",
            saved=sum(by_array.values()) / 2,
            cosine=None,
            relative_l2=None,
            changed_codes=None if encoder is None else _fewer_frames(encoder),
            note="kept frames are the same where nothing is fitted to others of their clip",
        )
    )
    return tuple(found)


def feature_error(store: Store) -> tuple[float, float]:
    """Mean cosine by token, and relative L2 of all, of features that went through int8."""
    product = error = power = 0.0
    count = 0
    for frame in _spread(store.num_frames, FRAMES):
        exact = store.batch([frame], ("tokens",))
        true = exact.need_tokens().feat.double()
        found = as_int8(exact).need_tokens().feat.double()
        norm = true.norm(dim=1) * found.norm(dim=1)
        product += float(((true * found).sum(1)[norm > 0] / norm[norm > 0]).sum())
        count += int((norm > 0).sum())
        error, power = error + float((true - found).square().sum()), power + float(true.square().sum())
    return product / max(count, 1), (error / power) ** 0.5 if power else 0.0


def as_int8(batch: FrameBatch) -> FrameBatch:
    """The batch that a store of `tokens.dtype=int8` would have given."""
    tokens = batch.need_tokens()
    feat, scale = quantise(tokens.feat.numpy(), tokens.offset.numpy())
    return replace(
        batch, tokens=tokens.with_feat(float_features(torch.from_numpy(feat), torch.from_numpy(scale), tokens.offset))
    )


def _changed(encoder: "Encoder", change: Callable[[FrameBatch], FrameBatch]) -> float:
    """Share of the codes that differ when both frames of each pair are changed."""
    pairs = encoder.pairs()
    changed = total = 0
    for batch in encoder.batches(pairs, _spread_array(len(pairs.first))):
        before = encoder.encode_batch(batch).codes
        after = encoder.encode_batch(_both(batch, change)).codes
        changed, total = changed + int((before != after).sum()), total + before.size
    return changed / total


def _both(batch: PairBatch, change: Callable[[FrameBatch], FrameBatch]) -> PairBatch:
    return replace(batch, first=change(batch.first), second=change(batch.second))


def _fewer_frames(encoder: "Encoder") -> float:
    """Share of the codes that differ when each pair is made of the nearest frames before it that are kept."""
    pairs = encoder.pairs()
    rows = _spread_array(len(pairs.first))
    before = encoder.encode(pairs, rows).codes
    after = encoder.encode(_of_kept(pairs, encoder.store), rows).codes
    return float((before != after).mean())


def _of_kept(pairs: "PairIndex", store: Store) -> "PairIndex":
    def kept(frame: Array) -> Array:
        first = store.start[store.clip_of(frame)[0]]
        return np.asarray(first + (frame - first) // 2 * 2)

    return replace(pairs, first=kept(np.asarray(pairs.first)), second=kept(np.asarray(pairs.second)))


def _spread(total: int, most: int) -> list[int]:
    chosen: list[int] = np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)).tolist()
    return chosen


def _spread_array(total: int) -> Array:
    return np.array(_spread(total, PAIRS), dtype=np.int64)
