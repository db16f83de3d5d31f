"""Space-filling curves: the order in which a cloud's voxels are read (PTv3, CVPR 2024, section 4.1).

Codes are int64 and take 3 bits a level; x is the most significant axis. The "-trans" orders swap x and y.
"""

from torch import Tensor

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")

# As in the published code, 16 levels at most, so a code fits 48 bits. A cloud's depth is the bit length of one more
# than its largest coordinate, so that coordinate 65535 never occurs (`sparse.py` relies on it).
MAX_DEPTH = 16
MAX_COORDINATE = 2**MAX_DEPTH - 2


def bit_depth(max_coordinate: int) -> int:
    """Levels of the curve for a cloud whose largest grid coordinate is `max_coordinate`, as the reference has it."""
    return (max_coordinate + 1).bit_length()


def encode(grid_N3: Tensor, depth_N: Tensor, order: str, max_depth: int) -> Tensor:
    """Position of each voxel along the curve: int64 [N].

    Args:
        grid_N3: int64 [N,3], each coordinate in [0, 2**depth).
        depth_N: int64 [N], levels of the curve for each voxel (one value a cloud). Only the Hilbert code depends on it.
        order: one of `ORDERS`.
        max_depth: a number not below any of `depth_N`, known without asking the device.

    """
    if order not in ORDERS:
        raise ValueError(f"unknown serialization order {order!r}; the choices are {', '.join(ORDERS)}")
    x, y, z = grid_N3.unbind(1)
    if order.endswith("-trans"):
        x, y = y, x
    if order.startswith("z"):
        return _interleave(x, y, z)
    return _hilbert(x, y, z, depth_N, max_depth)


def _hilbert(x: Tensor, y: Tensor, z: Tensor, depth_N: Tensor, max_depth: int) -> Tensor:
    # Skilling, "Programming the Hilbert curve", AIP Conference Proceedings 707 (2004): undo the rotations of each level
    # from the top, which leaves the Gray code of the answer in interleaved form.
    axes = [x, y, z]
    for bit in range(max_depth - 1, -1, -1):
        # Levels above a cloud's own depth must leave it alone: a leading zero level would permute its axes.
        below = (depth_N > bit) * ((1 << bit) - 1)
        for i in range(3):
            is_set = -((axes[i] >> bit) & 1)  # all ones where the bit is set, else zero
            swap = (axes[0] ^ axes[i]) & below & ~is_set
            axes[0] = axes[0] ^ swap ^ (below & is_set)
            if i:  # for i = 0 the swap is with itself
                axes[i] = axes[i] ^ swap
    code = _interleave(*axes)
    for shift in (1, 2, 4, 8, 16, 32):  # Gray code to binary: each bit is the parity of those above it
        code = code ^ (code >> shift)
    return code


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def _spread(v: Tensor) -> Tensor:
    # Two zero bits before each of the 16 bits of v, by doubling (Morton's magic numbers).
    v = (v | (v << 32)) & 0x001F00000000FFFF
    v = (v | (v << 16)) & 0x001F0000FF0000FF
    v = (v | (v << 8)) & 0x100F00F00F00F00F
    v = (v | (v << 4)) & 0x10C30C30C30C30C3
    return (v | (v << 2)) & 0x1249249249249249
