"""Concerto tiny learns: pairs of clouds as said, a loss that falls, a teacher that follows, a command that ends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from moving_film_factory import sliding_film
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import FailedError
from pipeline.extract.weights import find_weights
from pipeline.train.data import load_ahead
from pipeline.train.frozen.cell_targets import CELL_STEPS, cell_targets, value_slice
from pipeline.train.frozen.clouds import TAUGHT_EVERY, CloudPairs, CloudsSection, PairBatch
from pipeline.train.frozen.distil import Pretraining, total
from pipeline.train_config import TrainSection

POINTS = 1024


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten films of a sliding block."""
    folder = tmp_path_factory.mktemp("films")
    for index in range(10):
        sliding_film(seed=index).save(folder / f"{index:05d}.npz")
    return folder


def _pairs(folder: Path) -> CloudPairs:
    return CloudPairs(sorted(folder.glob("*.npz")), CloudsSection(points=POINTS), seed=3)


def _equal(one: PairBatch, other: PairBatch) -> bool:
    return torch.equal(one.student.feat, other.student.feat) and torch.equal(one.cell_values, other.cell_values)


def test_a_place_of_the_stream_gives_the_same_pair_every_time(films: Path) -> None:
    pairs = _pairs(films)
    assert _equal(pairs[range(4, 6)], _pairs(films)[range(4, 6)])
    assert not _equal(pairs[range(4, 6)], pairs[range(5, 7)])


def test_a_loader_process_gives_the_same_pairs(films: Path) -> None:
    batches = load_ahead(_pairs(films), [range(4, 6), range(6, 8)], TrainSection(workers=1))
    for places, batch in zip((range(4, 6), range(6, 8)), batches, strict=True):
        assert _equal(batch, _pairs(films)[places])


def test_every_point_is_counted_in_a_cell_and_every_voxel_is_in_one(films: Path) -> None:
    batch = _pairs(films)[range(1, 3)]  # neither is shown to the teacher, so that no voxel is hidden
    assert batch.teacher is None
    assert len(batch) == 2
    counts = torch.zeros(4).index_add_(0, batch.cell_cloud, batch.cell_count)
    assert counts.tolist() == [POINTS] * 4
    coarse = torch.div(batch.student.grid_coord, CELL_STEPS, rounding_mode="floor")
    clouds = torch.searchsorted(batch.student.offset, torch.arange(len(coarse)), right=True)
    of_voxels = torch.cat([clouds[:, None], coarse], 1).unique(dim=0)
    assert torch.equal(of_voxels, torch.cat([batch.cell_cloud[:, None], batch.cell_grid], 1))


def test_every_fourth_pair_is_taught(films: Path) -> None:
    batch = _pairs(films)[range(TAUGHT_EVERY + 1)]
    assert batch.taught.tolist() == [0, 1, 2 * TAUGHT_EVERY, 2 * TAUGHT_EVERY + 1]
    assert batch.teacher is not None
    assert len(batch.teacher.offset) == 4
    assert not torch.equal(batch.teacher.coord[:100], batch.student.coord[:100])  # other points of the same cloud


def test_the_change_of_the_moving_share_is_the_motion(films: Path) -> None:
    """What the difference of two frames is asked for: the share of points times the way they went."""
    batch = _pairs(films)[range(16)]
    where = value_slice("moving")
    share = (batch.cell_count / POINTS)[:, None]
    moving = torch.zeros(32, 8).index_add_(0, batch.cell_cloud, batch.cell_values[:, where] * share)
    centre = moving[:, 1:4] / moving[:, :1]
    said = (centre[1::2] - centre[::2]).norm(dim=1)
    truth = (batch.scene[1::2, :3] - batch.scene[::2, :3]).norm(dim=1)  # from all pixels, not from those drawn
    assert float((said - truth).abs().max()) < 0.02
    assert float(truth.min()) > 0.03


def test_cell_values_are_means_of_their_points() -> None:
    coord = torch.tensor([[0.1, 0.0, 0.0], [0.3, 0.0, 0.0], [0.9, 0.0, 0.0]])
    targets = cell_targets(
        coord=coord,
        grid=torch.tensor([[0, 0, 0], [15, 0, 0], [16, 0, 0]]),
        within=torch.tensor([[-0.9, 0, 0], [0.9, 0, 0], [-0.9, 0, 0]]),
        color=torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.5, 0, 0]]),
        edges=torch.zeros(3, 4),
        moving=torch.tensor([True, False, True]),
        part=torch.tensor([False, False, True]),
    )
    assert targets.grid.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert targets.count.tolist() == [2, 1]
    assert torch.allclose(targets.values[0, value_slice("coordinate")], torch.tensor([0.2, 0.0, 0.0]))
    assert torch.allclose(targets.values[0, value_slice("place")], torch.tensor([0.0, 0, 0, 0.9, 0, 0]))
    assert torch.allclose(targets.values[:, value_slice("moving")][:, :2], torch.tensor([[0.5, 0.05], [1.0, 0.9]]))
    assert torch.allclose(targets.values[0, value_slice("occupancy")].expm1().sum(), torch.tensor(2.0))


def test_the_loss_falls_and_the_teacher_follows(films: Path) -> None:
    torch.manual_seed(0)
    pairs = _pairs(films)
    model = Pretraining(0)
    model.set_statistics(pairs[range(16)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    batch, losses = pairs[range(4)], []
    for _ in range(8):
        loss = total(model(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_teacher(0.5)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for mine, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert mine.grad is None
        assert float((mine - other).detach().abs().max()) < 0.1


def test_films_in_which_nothing_moves_are_a_sentence(tmp_path: Path) -> None:
    sliding_film(still=True).save(tmp_path / "00000.npz")
    with pytest.raises(FailedError, match="Nothing moves in 20 films"):
        CloudPairs([tmp_path / "00000.npz"], CloudsSection(points=POINTS), seed=0)[range(1)]


def test_the_command_trains_and_writes_weights_that_extraction_loads(tmp_path: Path, films: Path) -> None:
    standing = tmp_path / "films" / "standing"
    standing.mkdir(parents=True)
    for path in films.iterdir():
        (standing / path.name).symlink_to(path)
    shared = f"concerto.clouds.films=10 concerto.clouds.points={POINTS} concerto.train.batch=2 concerto.train.workers=0"
    sizes = "concerto.train.validate_samples=2 concerto.train.steps=3 concerto.train.warmup=1"
    arguments = ["train", "tiny-frozen", "--out", str(tmp_path), "--only", "concerto", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, [*arguments, *shared.split(), *sizes.split()])
    assert result.exit_code == 0, result.output
    found = find_weights("concerto", str(tmp_path / "concerto_tiny.safetensors"), "main")
    assert found.state is not None
    fresh = Pretraining(0).teacher.state_dict()
    assert found.state.keys() == fresh.keys()
    assert any(not np.allclose(found.state[name].float(), fresh[name], atol=1e-3) for name in fresh)


def test_an_unknown_model_is_a_sentence() -> None:
    result = CliRunner().invoke(app, ["train", "tiny-frozen", "--only", "concreto"])
    assert result.exit_code == 2
