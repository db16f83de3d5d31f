"""The golden numbers of tests/golden/README.md: the published architecture, computed by its authors' code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import fill_from_names

from stages.concerto import LARGE, SMALL, TINY, build_concerto

GOLDEN = Path(__file__).parents[1] / "golden"
FEATURE_BAR = 2e-4


@pytest.mark.parametrize("case", [0, 1])
def test_outputs_equal_golden(case):
    spec = json.loads((GOLDEN / "concerto_tiny.json").read_text())
    model = build_concerto(spec["config"]).eval()
    fill_from_names(model)
    with np.load(GOLDEN / "concerto_tiny.npz") as arrays:
        cloud = {name: torch.from_numpy(arrays[f"in{case}_{name}"]) for name in ("coord", "grid_coord", "feat")}
        cloud["offset"] = torch.tensor([len(cloud["coord"])])
        with torch.inference_mode():
            out = model(cloud)
        expected = {name: arrays[f"out{case}_{name}"] for name in ("feat", "coord", "grid_coord", "inverse")}
    np.testing.assert_array_equal(out["inverse"], expected["inverse"])
    np.testing.assert_array_equal(out["grid_coord"], expected["grid_coord"])
    assert out["feat"].dtype == torch.float32
    assert np.abs(out["feat"].numpy() - expected["feat"]).max() <= FEATURE_BAR
    assert np.abs(out["coord"].numpy() - expected["coord"]).max() <= 1e-6
    assert out["offset"].tolist() == [len(expected["feat"])]


@pytest.mark.parametrize("name", ["concerto_tiny", "concerto_base"])
def test_names_and_shapes_equal_the_checkpoint(name):
    spec = json.loads((GOLDEN / f"{name}.json").read_text())
    with torch.device("meta"):
        model = build_concerto(spec["config"])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == spec["state_dict"]


@pytest.mark.parametrize(
    ("config", "millions"), [(SMALL, 38.6), (LARGE, 207.7), (TINY, 1.3)], ids=["small", "large", "tiny"]
)
def test_sizes_of_the_named_configurations(config, millions):
    # The paper gives 39 M and 208 M for the published small and large.
    with torch.device("meta"):
        model = build_concerto(config.to_dict())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
