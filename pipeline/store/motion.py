"""How much moves between the two frames of each pair, from stored points alone: for drawing pairs with motion oftener.

Shape legend: F frames of a clip, P points a frame, Q = 196 cells, n pairs.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from data_specs.arrays import Array
from data_specs.records import exclusive_sum
from data_specs.shards import GRID
from pipeline.store.pairs import PairIndex

if TYPE_CHECKING:
    from pipeline.store.loader import Store

CELLS = GRID * GRID
_COLUMNS = ("points/pixel", "points/depth", "camera/range", "camera/normalisation", "tokens/count", "tokens/offset")


def motion_weights(store: "Store", pairs: PairIndex) -> Array:
    """The motion of each pair over the mean of all, f4 [n]: 0 where nothing moves, mean 1; all 1 where no pair has any.

    Chances of (1 - share) + share * weight take pairs equally often for a share of 0, in proportion to their motion for
    1. See `pair_motion` for what counts as motion.
    """
    motion = pair_motion(store, pairs)
    mean = float(motion.mean(dtype=np.float64)) if len(motion) else 0.0
    return np.ones_like(motion) if mean == 0 else (motion / mean).astype(np.float32)


def pair_motion(store: "Store", pairs: PairIndex) -> Array:
    """How far things come nearer or go away between the frames of each pair, f4 [n], in the clip's normalised unit.

    The mean depth of the points of each of the 14x14 cells is compared: the mean over cells, with points in both
    frames, of the absolute change beyond that of the median cell. A camera's own motion and a scale that drifts change
    every cell; what a hand does changes a few. Reads each clip once, 4 bytes a point and no features.
    """
    out = np.zeros(len(pairs), dtype=np.float32)
    order = np.argsort(pairs.clip, kind="stable")
    clips, begin = np.unique(pairs.clip[order], return_index=True)
    for clip, mine in zip(clips.tolist(), np.split(order, begin[1:]), strict=True):
        depth_FQ = _depth_of_cells(store, clip)
        start = int(store.start[clip])
        change_nQ = np.abs(depth_FQ[pairs.second[mine] - start] - depth_FQ[pairs.first[mine] - start])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a pair without a common cell: no motion is known
            beyond_nQ = np.maximum(change_nQ - np.nanmedian(change_nQ, axis=1, keepdims=True), 0.0)
            out[mine] = np.nan_to_num(np.nanmean(beyond_nQ, axis=1))
    return out


def _depth_of_cells(store: "Store", clip: int) -> Array:
    """Mean depth f8 [F,Q] of the points of each cell, in the normalised unit; NaN in empty cells."""
    reader, row = store.locate(clip)
    arrays = reader.clip_arrays(row, _COLUMNS)
    pixel_FP = arrays["points/pixel"].astype(np.int64)
    near_F, far_F = arrays["camera/range"].astype(np.float64).T
    depth_FP = near_F[:, None] + arrays["points/depth"] / 65535 * (far_F - near_F)[:, None]
    depth_FP *= arrays["camera/normalisation"][:, 3:]
    # points are in the order of their tokens: what is past the sum of the counts is padding
    kept_F = np.diff(exclusive_sum(arrays["tokens/count"])[arrays["tokens/offset"]])
    real_FP = np.arange(pixel_FP.shape[1]) < kept_F[:, None]
    width = store.manifest.sizes["W"]
    cell_FP = pixel_FP // width * GRID // width * GRID + pixel_FP % width * GRID // width
    flat = (np.arange(len(cell_FP))[:, None] * CELLS + cell_FP)[real_FP]
    size = len(cell_FP) * CELLS
    count = np.bincount(flat, minlength=size)
    total = np.bincount(flat, weights=depth_FP[real_FP], minlength=size)
    mean = np.full(size, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.reshape(-1, CELLS)
