import pytest
import torch

from stages.draw import Draw, mix_seed


def test_parts_of_a_step_see_the_numbers_of_the_whole() -> None:
    whole = Draw.whole(6, seed=3, step=5)
    parts = [Draw(3, 5, start=start, count=2, total=6) for start in (0, 2, 4)]
    for draw in (lambda d: d.normal(4, 2), lambda d: d.uniform(), lambda d: d.integers(9, 3)):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))


def test_calls_steps_and_seeds_differ() -> None:
    draw = Draw.whole(4)
    numbers = [draw.normal(3), draw.normal(3), Draw.whole(4, step=1).normal(3), Draw.whole(4, seed=1).normal(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(numbers) for b in numbers[:i])


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {mix_seed(seed, step) for seed in range(50) for step in range(50)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_samples_outside_of_the_step_are_refused() -> None:
    with pytest.raises(ValueError, match="samples 4:7 are outside of a step of 6"):
        Draw(0, 0, start=4, count=3, total=6)
