"""The VGGT that the package ships: it loads strictly and knows more of the tabletop world than a constant."""

import hashlib

import pytest
import torch

from pipeline.config import override
from pipeline.extract.models import load_models
from pipeline.extract.weights import builtin_path
from pipeline.recipes import extract_recipe
from pipeline.train.frozen.depth_error import GeometryError, mean_error, window_errors
from pipeline.train.frozen.filming import film
from pipeline.train.frozen.windows import Windows, window
from stages.vggt import VGGTEncoder

SEED = 77  # of no training film


@pytest.fixture(scope="module")
def vggt() -> VGGTEncoder:
    recipe = override(extract_recipe("tiny"), ["vggt.weights=builtin"])
    models = load_models(recipe, torch.device("cpu"))
    assert models.vggt is not None
    record = next(record for record in models.records if record.role == "vggt")
    assert not record.random
    assert len(record.sha256) == 64
    return models.vggt


def error_of(vggt: VGGTEncoder, truth: Windows) -> GeometryError:
    with torch.inference_mode():
        out = vggt.vggt(truth.images, ("pose_enc", "depth"))
    return mean_error([window_errors(out["depth"].squeeze(-1), out["pose_enc"], truth)])


def flat(truth: Windows) -> GeometryError:
    """Of a wall in front of a camera at rest."""
    return mean_error([window_errors(torch.ones_like(truth.depth), truth.pose[:, :1].expand_as(truth.pose), truth)])


@pytest.mark.parametrize("frames", [1, 3])
def test_depth_of_a_clip_never_seen_is_far_better_than_a_constant(vggt: VGGTEncoder, frames: int) -> None:
    truth = window(film(SEED, 1, way="standing", frames=frames), range(frames))
    error = error_of(vggt, truth)
    assert error.abs_rel < 0.3 * flat(truth).abs_rel
    assert error.delta > 0.85
    assert error.view < 5.0


def test_a_camera_at_rest_is_seen_at_rest(vggt: VGGTEncoder) -> None:
    truth = window(film(SEED, 2, way="standing", frames=3), range(3))
    error = error_of(vggt, truth)
    assert error.rotation < 0.5
    assert error.translation < 2.0


def test_the_file_is_small() -> None:
    assert builtin_path("vggt").stat().st_size < 6_000_000


def test_the_model_card_is_of_this_file() -> None:
    path = builtin_path("vggt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`{digest[:16]}`" in path.with_name("README.md").read_text()
