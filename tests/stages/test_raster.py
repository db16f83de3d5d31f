import torch

from data_specs.batches import CellBatch, FrameBatch, PointBatch, TokenBatch
from data_specs.examples import example_record
from stages.clouds import unpack_clouds
from stages.raster import CELLS, raster_coords, raster_features, raster_points


def test_a_cell_is_the_mean_of_its_points() -> None:
    tokens = TokenBatch(
        feat=torch.tensor([[1.0, 0.0], [3.0, 4.0], [-2.0, 8.0]]).half(),
        coord=torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0, 0]]).half(),
        count=torch.tensor([4, 4, 7]),
        offset=torch.tensor([0, 2, 3]),
    )
    cells = CellBatch(
        cell=torch.tensor([5, 5, 195, 0]),
        token=torch.tensor([0, 1, 1, 0]),
        count=torch.tensor([3, 1, 3, 7]),
        offset=torch.tensor([0, 3, 4]),
    )
    feat, count = raster_features(tokens, cells)
    coord = raster_coords(tokens, cells)
    assert feat.shape == (2, CELLS, 2) and count.shape == (2, CELLS) and coord.shape == (2, CELLS, 3)
    assert feat[0, 5].tolist() == [1.5, 1.0] and feat[0, 195].tolist() == [3.0, 4.0]
    assert feat[1, 0].tolist() == [-2.0, 8.0]
    assert coord[0, 5].tolist() == [0.25, 0.25, 0.25]
    assert count.nonzero().tolist() == [[0, 5], [0, 195], [1, 0]]
    assert count[1, 0] == 7
    empty = count == 0
    assert not feat[empty].any() and not coord[empty].any()


def test_the_raster_equals_the_mean_over_all_points() -> None:
    batch = FrameBatch.example(frames=2, points=3000, channels=16)
    tokens, cells, points = batch.need_tokens(), batch.need_cells(), batch.points
    assert points is not None
    feat, count = raster_features(tokens, cells)
    clouds = unpack_clouds(batch, width=224, normalised=True)
    row, column = points.pixel.long() // 224, points.pixel.long() % 224
    place = row * 14 // 224 * 14 + column * 14 // 224
    for frame in range(2):
        values = tokens.feat[tokens.offset[frame] + clouds.token[frame]].double()
        total = torch.zeros(CELLS, 16, dtype=torch.double).index_add_(0, place[frame], values)
        size = torch.bincount(place[frame], minlength=CELLS)
        assert torch.equal(size, count[frame].long())
        torch.testing.assert_close(feat[frame].double(), total / size.clamp_min(1)[:, None], atol=1e-5, rtol=1e-5)


def test_the_raster_of_points_is_exact_and_leaves_padding_out() -> None:
    batch = FrameBatch.example(frames=2, points=4000)
    points, camera = batch.points, batch.camera
    assert points is not None and camera is not None
    xyz, rgb, count = raster_points(points, camera)
    clouds = unpack_clouds(batch, width=224, normalised=True)
    mine = (points.pixel[1] // 224 // 16 == 7) & (points.pixel[1] % 224 // 16 == 3)
    assert count[1, 7 * 14 + 3] == mine.sum() > 1
    torch.testing.assert_close(xyz[1, 7 * 14 + 3], clouds.xyz[1][mine].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rgb[1, 7 * 14 + 3], points.rgb[1][mine].float().mean(0) / 255, atol=1e-5, rtol=1e-5)
    assert count.sum() == 8000 - (points.pixel == 0).sum()

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, torch.zeros_like(values[:, :100])], dim=1)

    more = PointBatch(
        pixel=padded(points.pixel), rgb=padded(points.rgb), depth=padded(points.depth), conf=padded(points.conf)
    )
    assert all(torch.equal(a, b) for a, b in zip(raster_points(more, camera), (xyz, rgb, count), strict=True))


def test_raster_coords_agree_with_the_points_to_the_size_of_a_token() -> None:
    batch = FrameBatch.example(frames=1, points=8192)
    points, camera = batch.points, batch.camera
    assert points is not None and camera is not None
    exact, _, count = raster_points(points, camera)
    rough = raster_coords(batch.need_tokens(), batch.need_cells())
    seen = count > 0
    assert (exact - rough)[seen].abs().max() < 0.32  # the cell of a token in `example_record`
    assert example_record(frames=1).tokens.count.sum() == 8192
