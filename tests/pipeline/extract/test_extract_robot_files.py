"""From a dataset's own files to a store: LIBERO, LeRobot and ALOHA through the same extraction."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.config import override
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, ExtractSummary, run_extract
from pipeline.recipes import extract_recipe
from pipeline.sim.record import record
from pipeline.store import open_store

VIEWS = {
    "libero": ("agentview", "eye_in_hand"),
    "lerobot": ("agent", "wrist"),
    "lerobot-v2.1": ("agent", "wrist"),
    "aloha": ("agent", "wrist"),
}


class _Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def extracted(data_format: str, root: Path, out: Path, **options: str) -> ExtractSummary:
    small = ["frames.max=3", "frames.size=56", "points.count=256", "points.min_points=50", "robot.chunk=5"]
    recipe = override(extract_recipe("tiny"), [*small, "max_bad_fraction=1"])
    request = ExtractRequest(
        dataset=data_format.removesuffix("-v2.1"), root=root, split=None, limit=None, out=str(out), recipe=recipe,
        options={"views": VIEWS[data_format][1], **options}, format="zarr", workers=0, device="cpu",
    )  # fmt: skip
    return run_extract(request, _Quiet())


@pytest.mark.parametrize("data_format", VIEWS)
def test_a_store_of_each_format(tmp_path: Path, data_format: str) -> None:
    record(data_format, tmp_path / "data", clips=1, seed=3, tasks="reach", size=32)
    options = {"hz": "20"} if data_format == "aloha" else {}
    summary = extracted(data_format, tmp_path / "data", tmp_path / "store", **options)
    assert (summary.clips, summary.rejected) == (1, ())
    store = open_store(str(tmp_path / "store"))
    wrist = f"views/{VIEWS[data_format][1]}"
    assert {"state", "action", wrist, "extra/action_chunk", "extra/action_sum"} <= set(store.columns())
    batch = store.batch(range(store.num_frames), columns=("state", "action", "extra/action_chunk"))
    width = 14 if data_format == "aloha" else 7
    assert batch.action.shape == (store.num_frames, width)
    np.testing.assert_array_equal(batch.extra["action_chunk"][:, 0], batch.action)


def test_good_episodes_are_kept(tmp_path: Path) -> None:
    record("libero", tmp_path / "data", clips=3, seed=3, tasks="reach", size=32)
    nan, cut, _ = sorted((tmp_path / "data").rglob("*.hdf5"))
    with h5py.File(nan, "a") as file:
        file["data/demo_0/actions"][3, 0] = np.nan
    cut.write_bytes(cut.read_bytes()[:5000])
    summary = extracted("libero", tmp_path / "data", tmp_path / "store")
    assert summary.clips == 1
    reasons = [reason for _, reason in summary.rejected]
    assert len(reasons) == 2
    for path, sentence in ((nan, "demo_0/actions is nan at step 3"), (cut, "truncated or damaged: copy or download")):
        assert any(str(path) in reason and sentence in reason for reason in reasons)
