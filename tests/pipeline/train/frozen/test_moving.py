"""What moves is found from depth alone, where it is."""

import numpy as np
import torch
from moving_film_factory import BLOCK, NEAR, SIDE, STEP, block_pixels, sliding_film

from pipeline.train.frozen.moving import find_moving


def test_the_moving_block_is_found_and_nothing_else() -> None:
    film = sliding_film()
    found = find_moving(film, (0, 5))
    assert found is not None
    # the columns that the block covers in every frame have no background; here it leaves all of its first ones
    expected = np.zeros((2, SIDE, SIDE), dtype=bool)
    for i, frame in enumerate((0, 5)):
        expected[i][block_pixels(frame)] = True
    assert np.array_equal(found.pixels.numpy().reshape(2, SIDE, SIDE), expected)
    metres = (5 * STEP) * NEAR / SIDE
    assert torch.allclose(found.centre[1] - found.centre[0], torch.tensor([metres, 0.0, 0.0]), atol=1e-5)
    assert torch.allclose(found.contact[1] - found.contact[0], torch.tensor([metres, 0.0, 0.0]), atol=1e-5)
    assert bool((found.part <= found.pixels).all())
    assert torch.allclose(found.share[:, 0], torch.full((2,), BLOCK**2 / SIDE**2))


def test_what_stands_still_is_not_found() -> None:
    assert find_moving(sliding_film(still=True), (0, 5)) is None
