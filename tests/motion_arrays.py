"""Clips with made-up motion: what extraction would have stored of points that move."""

from dataclasses import replace

import numpy as np

from data_specs.motion import CELLS, CELLS_NAME, CELLS_WIDTH, STATISTICS_NAME, STATISTICS_WIDTH
from data_specs.records import ClipRecord


def with_motion(record: ClipRecord, seed: int = 0) -> ClipRecord:
    """The clip with random motion arrays; shares are above 0."""
    rng = np.random.default_rng(seed)
    frames = len(record)
    cells = rng.random((frames, CELLS, CELLS_WIDTH)).astype(np.float16)
    statistics = rng.normal(size=(frames, STATISTICS_WIDTH)).astype(np.float32)
    statistics[:, 0] = 0.1
    return replace(record, extra={**record.extra, CELLS_NAME: cells, STATISTICS_NAME: statistics})
