import pytest
import torch

from stages.concerto.serialization import MAX_COORDINATE, MAX_DEPTH, ORDERS, bit_depth, encode


def cube(side: int) -> torch.Tensor:
    axis = torch.arange(side)
    return torch.cartesian_prod(axis, axis, axis)


def codes(grid: torch.Tensor, order: str, depth: int, max_depth: int | None = None) -> torch.Tensor:
    return encode(grid, torch.full((len(grid),), depth), order, max_depth or depth)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_codes_are_a_bijection_on_the_cube(order, depth):
    side = 2**depth
    assert torch.equal(codes(cube(side), order, depth).sort().values, torch.arange(side**3))


@pytest.mark.parametrize("order", ["hilbert", "hilbert-trans"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_consecutive_hilbert_codes_are_neighbours(order, depth):
    grid = cube(2**depth)
    path = grid[codes(grid, order, depth).argsort()]
    assert ((path[1:] - path[:-1]).abs().sum(1) == 1).all()


def test_z_order_interleaves_bits_with_x_first():
    grid = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0], [5, 3, 6], [65534, 65534, 65534]])
    expected = [0b100, 0b010, 0b001, 0b100000, 0b101_011_110, 2**48 - 8]
    assert codes(grid, "z", MAX_DEPTH).tolist() == expected


@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_trans_swaps_x_and_y(curve):
    grid = cube(8)
    assert torch.equal(codes(grid, f"{curve}-trans", 3), codes(grid[:, [1, 0, 2]], curve, 3))
    assert not torch.equal(codes(grid, f"{curve}-trans", 3), codes(grid, curve, 3))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_deeper_cloud_beside_it_changes_nothing(order, depth):
    grid = cube(2**depth)
    assert torch.equal(codes(grid, order, depth), codes(grid, order, depth, max_depth=MAX_DEPTH))


def test_the_hilbert_code_depends_on_the_depth():
    # Why the depth must be each cloud's own and not the batch's.
    grid = cube(4)
    assert not torch.equal(codes(grid, "hilbert", 2), codes(grid, "hilbert", 3))


def test_bit_depth_is_that_of_the_reference():
    assert [bit_depth(largest) for largest in (0, 1, 2, 3, 6, 7, 149)] == [1, 2, 2, 3, 3, 4, 8]
    assert bit_depth(MAX_COORDINATE) == MAX_DEPTH


def test_unknown_order_names_the_choices():
    with pytest.raises(ValueError, match="hilbert-trans"):
        encode(cube(2), torch.ones(8, dtype=torch.int64), "peano", 1)
