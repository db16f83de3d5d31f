"""The weights that the package ships: found by name, recorded, unchanged, and better than random ones."""

import hashlib

import numpy as np
import pytest
import torch

from data_specs.datasets import FrameSampling
from data_specs.records import ClipRecord
from pipeline.config import override
from pipeline.evaluate.probe import probe
from pipeline.extract.mapper import Mapper
from pipeline.extract.models import load_models
from pipeline.extract.weights import builtin_path, find_weights
from pipeline.recipes import extract_recipe
from pipeline.sources.tabletop import TabletopSource

CPU = torch.device("cpu")
_SENSOR = ("geometry.source=sensor", "frames.max=16")


def _sloping_cloud() -> dict[str, torch.Tensor]:
    """A coloured slope of 40 x 40 voxels."""
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    grid = torch.stack([row, column, (row + column) // 4], dim=1)
    color = torch.stack([row * 6, column * 6, 255 - row * 6], dim=1).to(torch.uint8)
    coord = grid.float() * 0.02 - 0.4
    return {"coord": coord, "grid_coord": grid, "color": color, "offset": torch.tensor([len(grid)])}


def test_concerto_tiny_is_found_recorded_and_loaded_strictly() -> None:
    recipe = override(extract_recipe("tiny"), [*_SENSOR, "concerto.weights=builtin"])
    (record,) = load_models(recipe, CPU).records
    assert (record.role, record.name, record.random) == ("concerto", "builtin:concerto_tiny", False)
    assert record.sha256 == hashlib.sha256(builtin_path("concerto").read_bytes()).hexdigest()
    assert record.licence.startswith("Apache-2.0")


def test_concerto_tiny_gives_the_features_it_gave_when_it_was_shipped() -> None:
    recipe = override(extract_recipe("tiny"), [*_SENSOR, "concerto.weights=builtin"])
    features = load_models(recipe, CPU).concerto(**_sloping_cloud())
    assert features.feat.shape == (11, 128)
    expected = torch.tensor([0.59634, 0.15746, 1.56118, 1.34405, -0.46125, -0.00846])
    assert torch.allclose(features.feat[0, :6], expected, atol=2e-3)
    assert float(features.feat.abs().mean()) == pytest.approx(0.62180, rel=1e-3)


def test_the_weights_are_small_and_say_what_they_are() -> None:
    assert sum(path.stat().st_size for path in builtin_path("concerto").parent.glob("*.safetensors")) < 12e6
    found = find_weights("concerto", "builtin", "main")
    assert found.config is not None
    assert found.config["enc_channels"][-1] == 128
    card = (builtin_path("concerto").parent / "README.md").read_text()
    assert found.record.sha256[:16] in card


def _differences(records: list[ClipRecord], name: str) -> np.ndarray:
    rows = []
    for record in records:
        tokens = record.tokens
        frames = [slice(*tokens.offset[i : i + 2]) for i in range(len(record))]
        mean = [np.average(tokens.feat[f].astype(np.float32), axis=0, weights=tokens.count[f]) for f in frames]
        values = np.stack(mean) if name == "feat" else record.extra["action_sum"]
        rows.append(values[2:] - values[:-2])
    return np.concatenate(rows)


@pytest.mark.slow
def test_trained_features_carry_more_of_the_motion_than_random_ones() -> None:
    """Mean features of two frames half a second apart, on clips that neither has seen."""
    source = TabletopSource(None, None, {"clips": "30", "seed": "4"})
    clips = [source.read(ref, FrameSampling(fps=4.0, max=16)) for ref in source.clips()]
    errors = {}
    for weights in ("builtin", "random:0"):
        recipe = override(extract_recipe("tiny"), [*_SENSOR, f"concerto.weights={weights}"])
        mapper = Mapper(recipe, load_models(recipe, CPU))
        records = [mapper(clip) for clip in clips]
        x, y = _differences(records, "feat"), _differences(records, "action_sum")[:, :3]
        clip = np.concatenate([np.full(len(record) - 2, i) for i, record in enumerate(records)])
        late = clip >= 22
        result = probe(x[~late], y[~late], x[late], y[late], clip_train=clip[~late], clip_val=clip[late], mlp=False)
        errors[weights] = result.linear.nmse
    assert errors["builtin"] < 0.9 * errors["random:0"], errors
