import pytest
import torch

from stages.temporal import TemporalConfig, TemporalEncoder


def _encoder(layers: int = 1, frames: int = 2) -> TemporalEncoder:
    torch.manual_seed(0)
    return TemporalEncoder(TemporalConfig(dim=16, layers=layers, heads=2, hidden=32, frames=frames))


def test_without_layers_the_frames_stay_as_they_are() -> None:
    frames = torch.randn(3, 2, 7, 16)
    assert torch.equal(_encoder(layers=0)(frames), frames)


def test_each_cell_sees_all_frames_at_its_place_only() -> None:
    encoder, frames = _encoder(frames=3), torch.randn(2, 3, 7, 16)
    out = encoder(frames)
    assert out.shape == (2, 3, 7, 16)
    changed = frames.clone()
    changed[1, 1, 4] += 1  # the frame in the middle, one cell
    moved = (encoder(changed) - out).abs().amax(-1) > 0
    assert moved.nonzero().tolist() == [[1, frame, 4] for frame in range(3)]


def test_time_has_a_direction() -> None:
    encoder, frames = _encoder(), torch.randn(2, 2, 7, 16)
    assert not torch.allclose(encoder(frames), encoder(frames.flip(1)).flip(1), atol=1e-4)


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="expected 2 to 2"):
        _encoder()(torch.randn(1, window, 7, 16))
