from dataclasses import replace

import numpy as np
import pytest
from store_factory import FORMATS, SIZE, small_record, small_store

from pipeline.store import open_store
from pipeline.store.motion import _depth_of_cells, motion_weights, pair_motion

FRAMES = 4


def still_record(key, *changes):
    """A clip whose frames are all its first, but for `changes`: (frame, function of pixel and depth in metres)."""
    record = small_record(key, frames=FRAMES, kept=None)
    points, camera, tokens = record.points, record.camera, record.tokens
    count = tokens.count[: tokens.offset[1]]
    pixel = points.pixel[:1].repeat(FRAMES, 0)
    near, far = 0.5, 4.5
    level = points.depth[0].astype(float) / 65535
    depth = np.tile(camera.range[0, 0] + level * (camera.range[0, 1] - camera.range[0, 0]), (FRAMES, 1))
    for frame, change in changes:
        depth[frame] = change(pixel[frame], depth[frame])
    rows = int(tokens.offset[1])
    ends = int(record.cells.offset[1])
    return replace(
        record,
        points=replace(points, pixel=pixel, depth=np.rint((depth - near) / (far - near) * 65535).astype("<u2")),
        camera=replace(
            camera,
            range=np.tile(np.array([near, far], "<f4"), (FRAMES, 1)),
            normalisation=np.tile(np.array([0, 0, 0, 2.0], "<f4"), (FRAMES, 1)),
        ),
        tokens=replace(
            tokens,
            feat=np.tile(tokens.feat[:rows], (FRAMES, 1)),
            coord=np.tile(tokens.coord[:rows], (FRAMES, 1)),
            count=np.tile(count, FRAMES),
            offset=np.arange(FRAMES + 1) * rows,
        ),
        cells=replace(
            record.cells,
            cell=np.tile(record.cells.cell[:ends], FRAMES),
            token=np.tile(record.cells.token[:ends], FRAMES),
            count=np.tile(record.cells.count[:ends], FRAMES),
            offset=np.arange(FRAMES + 1) * ends,
        ),
    )


def corner(by):
    """What is in the upper left quarter of the picture comes nearer by `by` metres."""
    return lambda pixel, depth: depth - by * ((pixel // SIZE < SIZE // 2) & (pixel % SIZE < SIZE // 2))


@pytest.mark.parametrize("store_format", FORMATS)
def test_what_moves_counts_and_what_moves_everywhere_does_not(tmp_path, store_format):
    records = [
        still_record("a-still"),
        still_record("b-hand", (1, corner(0.1)), (3, corner(0.4))),
        still_record("c-camera", (2, lambda _, depth: depth + 0.3)),
    ]
    small_store(tmp_path / "s", store_format, records)
    store = open_store(str(tmp_path / "s"))
    pairs = store.pairs(0.25)
    still, hand, camera = pair_motion(store, pairs).reshape(3, FRAMES - 1)  # of frames 0-1, 1-2, 2-3 of each clip
    assert hand.dtype == np.float32 and hand[0] > 0.02
    assert still.max() < 1e-4 and camera.max() < 1e-3
    np.testing.assert_allclose(hand, hand[0] * np.array([1, 1, 4]), rtol=0.01)
    weights = motion_weights(store, pairs)
    assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(weights, pair_motion(store, pairs) / pair_motion(store, pairs).mean(), rtol=1e-5)


def test_a_store_where_nothing_moves_weighs_all_pairs_alike(tmp_path):
    small_store(tmp_path / "s", records=[still_record("a"), still_record("b")])
    store = open_store(str(tmp_path / "s"))
    assert motion_weights(store, store.pairs(0.5)).tolist() == [1.0] * 4


def test_a_cell_has_the_mean_depth_of_its_points_and_padding_is_none(tmp_path):
    record = small_record("a", frames=2, kept=60)  # frame 0 has 60 points and 36 slots of padding
    small_store(tmp_path / "s", records=[record])
    found = _depth_of_cells(open_store(str(tmp_path / "s")), 0)
    for frame, kept in enumerate((60, 96)):
        near, far = record.camera.range[frame]
        depth = near + record.points.depth[frame, :kept] / 65535 * (far - near)
        pixel = record.points.pixel[frame, :kept].astype(int)
        cell = pixel // SIZE // 2 * 14 + pixel % SIZE // 2  # 28 pixels are 14 cells of 2
        for number in range(196):
            mine = depth[cell == number] * record.camera.normalisation[frame, 3]
            assert (
                np.isnan(found[frame, number]) if not len(mine) else found[frame, number] == pytest.approx(mine.mean())
            )
