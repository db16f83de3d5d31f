import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shown_store import SIZE, small_records, write_store

from pipeline.config import RequestError
from pipeline.inspect_rerun import unproject, write_recording
from stages.points import unproject_pixels


def test_recording_holds_clouds_frames_and_cameras(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the [viz] extra is not installed")
    from rerun.chunk import RrdReader

    store = write_store(tmp_path / "store", small_records(2))
    write_recording(store, tmp_path / "store.rrd")
    chunks = list(RrdReader(str(tmp_path / "store.rrd")).stream())
    paths = {chunk.entity_path for chunk in chunks}
    for key in ("clip-0", "clip-1"):
        for part in ("points/rgb", "points/features", "points/confidence", "camera", "camera/image", "camera/depth"):
            assert f"/clips/{key}/{part}" in paths
    rows = sum(chunk.num_rows for chunk in chunks if chunk.entity_path == "/clips/clip-0/points/rgb")
    assert rows == 3


def test_missing_package_names_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(RequestError, match=r"pip install 'concerto-laq\[viz\]'"):
        write_recording(str(tmp_path / "store"), tmp_path / "store.rrd")
    assert not (tmp_path / "store.rrd").exists()


def test_missing_folder_and_missing_store_are_requests_that_are_wrong(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the [viz] extra is not installed")
    with pytest.raises(RequestError, match="no folder"):
        write_recording(str(tmp_path), tmp_path / "nowhere" / "store.rrd")
    with pytest.raises(RequestError, match="expected a store"):
        write_recording(str(tmp_path), tmp_path / "store.rrd")


def test_unproject_agrees_with_the_stage() -> None:
    record = small_records(1)[0]
    pixel = record.points.pixel[1].astype(np.int64)
    depth = np.linspace(0.5, 3.0, len(pixel))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    extrinsic = np.concatenate([rotation, [[0.1], [-0.4], [2.0]]], axis=1)
    intrinsic = record.camera.intrinsic[1].astype(np.float64)
    expected = unproject_pixels(
        torch.from_numpy(pixel),
        torch.from_numpy(depth),
        torch.from_numpy(intrinsic),
        torch.from_numpy(extrinsic),
        SIZE,
    )
    np.testing.assert_allclose(unproject(pixel, depth, intrinsic, extrinsic, SIZE), expected.numpy(), atol=1e-12)
