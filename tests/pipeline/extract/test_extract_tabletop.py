from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_factory import FORMATS

from pipeline.config import override
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.recipes import extract_recipe
from pipeline.sim.episode import demonstrate
from pipeline.sim.tasks import find_tasks
from pipeline.store import open_store
from pipeline.store.loader import Store

COLUMN = "extra/action_sum"


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def extracted(out: Path, **options: Any) -> Store:
    """A store of two reaching clips of a few small frames."""
    chosen = {"clips": "2", "seed": "5", "tasks": "reach", **options.pop("options", {})}
    recipe = override(
        extract_recipe("tiny"),
        ["geometry.source=sensor", "frames.max=4", "frames.size=56", "points.count=256", "points.min_points=100"],
    )
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, options=chosen, limit=None, out=str(out), recipe=recipe, workers=0,
        device="cpu", **{"format": "zarr", **options},
    )  # fmt: skip
    run_extract(request, _Quiet())
    return open_store(str(out))


@pytest.mark.parametrize("store_format", FORMATS)
def test_accumulated_actions_are_a_column_of_the_store(tmp_path: Path, store_format: str) -> None:
    store = extracted(tmp_path / "s", format=store_format)
    assert COLUMN in store.columns()
    total = store.batch(range(store.num_frames), columns=(COLUMN, "action")).extra["action_sum"].numpy()
    assert (total.dtype, total.shape) == (np.float32, (store.num_frames, 7))
    for clip in range(len(store)):
        episode = demonstrate(5, clip, find_tasks("reach"))
        frames = np.array(store.frames(clip))
        at = np.rint(store.time[frames] * 20).astype(int)
        for frame, moment in zip(frames, at, strict=True):
            expected = episode.action[:moment].astype(np.float64).sum(axis=0)
            np.testing.assert_allclose(total[frame], expected, atol=1e-5)
    summary = inspect_store(str(tmp_path / "s"), verify=True)
    assert summary.verified is True
    assert summary.bytes_per_frame_by_array[COLUMN] > 0
    assert any(COLUMN in line for line in summary_lines(summary))
