import pytest
import torch

from stages.patches import PatchConfig, PatchEncoder, patchify, unpatchify
from stages.spatial import SpatialConfig, SpatialEncoder


def test_cells_see_each_other_and_know_their_place() -> None:
    torch.manual_seed(0)
    encoder = SpatialEncoder(SpatialConfig(channels=12, dim=16, layers=1, heads=2, hidden=32)).eval()
    dense = torch.randn(2, 14, 14, 12)
    out = encoder(dense)
    assert out.shape == (2, 196, 16)
    assert torch.equal(out, encoder(dense.flatten(1, 2)))
    changed = dense.clone()
    changed[0, 3, 3] += 1
    moved = (encoder(changed) - out).abs().amax(-1) > 0
    assert moved[0].all() and not moved[1].any()
    order = torch.randperm(196)
    shuffled = encoder(dense.flatten(1, 2)[:, order])
    assert not torch.allclose(shuffled, out[:, order], atol=1e-3)


def test_full_size_projection_and_encoder() -> None:
    encoder = SpatialEncoder(SpatialConfig())
    assert sum(p.numel() for p in encoder.projection.parameters()) == 525_312
    assert sum(p.numel() for p in encoder.parameters()) == 525_312 + 4 * 3_152_384 + 1024


def test_patches_are_the_pixels_of_their_cells() -> None:
    pixels = torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)
    patches = patchify(pixels)
    assert patches.shape == (2, 196, 768)
    expected = pixels[1, 16:32, 48:64].float() / 255
    assert torch.equal(patches[1, 14 + 3].view(16, 16, 3), expected)
    assert torch.equal(unpatchify(patches), pixels.float() / 255)
    with pytest.raises(ValueError, match="224, 224, 3"):
        patchify(pixels[:, :100])


def test_the_patch_encoder_is_about_as_large_as_s2d() -> None:
    encoder = PatchEncoder(PatchConfig())
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(6_420_480, rel=0.06)
    small = PatchEncoder(PatchConfig(dim=16, layers=1, heads=2, hidden=32))
    assert small(torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)).shape == (2, 14, 14, 16)
