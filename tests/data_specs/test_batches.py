import numpy as np
import pytest
import torch

from data_specs.batches import (
    BATCHES,
    CameraBatch,
    CellBatch,
    CloudBatch,
    FrameBatch,
    ImageBatch,
    PairBatch,
    PointBatch,
    TokenBatch,
)


def test_every_type_makes_an_example_of_itself():
    tokens = TokenBatch.example(frames=3, channels=8)
    assert tokens.feat.dtype == torch.float16 and tokens.feat.shape == (int(tokens.offset[-1]), 8)
    assert tokens.frame.bincount().tolist() == tokens.offset.diff().tolist()
    assert CellBatch.example(frames=3).offset.shape == (4,)
    assert PointBatch.example(frames=1, points=64).rgb.shape == (1, 64, 3)
    assert CameraBatch.example(frames=2).extrinsic.shape == (2, 3, 4)
    assert ImageBatch.example(frames=2).encoded(1)[:2] == b"\xff\xd8"  # a JPEG
    assert CloudBatch.example(frames=2, points=64).xyz.shape == (2, 64, 3)
    assert len(PairBatch.example(pairs=3, channels=8)) == 3
    assert all(hasattr(batch, "example") for batch in BATCHES.values())


def test_packed_cells_rasterise_the_features_that_the_points_have():
    """Counts weighted over (cell, token) equal the sum over points, which is what the decoder's target rests on."""
    batch = FrameBatch.example(frames=2, points=512, channels=8)
    tokens, cells, points = batch.need_tokens(), batch.cells, batch.points
    feat = tokens.feat.double()
    raster = torch.zeros(2 * 196, 8, dtype=torch.float64)
    weighted = feat[cells.packed_token(tokens)] * cells.count[:, None]
    raster.index_add_(0, cells.packed_cell(), weighted)
    expected = np.zeros((2, 196, 8))
    for b in range(2):
        rows = feat[tokens.offset[b] : tokens.offset[b + 1]].numpy()
        owner = np.repeat(np.arange(len(rows)), tokens.count[tokens.offset[b] : tokens.offset[b + 1]].numpy())
        row, column = np.divmod(points.pixel[b].numpy(), 224)
        np.add.at(expected[b], (row // 16) * 14 + column // 16, rows[owner])
    np.testing.assert_allclose(raster.view(2, 196, 8).numpy(), expected, atol=1e-9)


def test_map_reaches_every_tensor():
    batch = FrameBatch.example(frames=1, points=64, channels=8, state=3, action=2)
    seen = []
    moved = PairBatch(first=batch, second=batch).map(lambda tensor: seen.append(tensor) or tensor.clone())
    assert len(seen) == 2 * (2 + 4 + 4 + 4 + 5 + 2 + 3)
    assert torch.equal(moved.first.need_tokens().feat, batch.need_tokens().feat)
    assert moved.first.need_tokens().feat is not batch.need_tokens().feat
    assert batch.to("cpu").camera.range.device.type == "cpu"


def test_a_batch_without_tokens_says_how_to_get_them():
    with pytest.raises(ValueError, match="columns="):
        FrameBatch.example(frames=1, points=64, columns=("rgb",)).need_tokens()
