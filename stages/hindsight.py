"""Where the thing that a demonstration handles stands and where it brings it, told by what became of the scene.

Shape legend: F frames, n points of a frame, H x W pixels.
What a hand comes to and what then is gone was the thing; what is there at the end and was not at the start marks the
goal. The test of free space is that of `stages.motion`; the hand's own way tells what it did from what happened beside
it. In the spirit of hindsight relabelling (Andrychowicz et al. 2017): a demonstration shows what it was for by its end.
"""

import torch
from torch import Tensor

from data_specs.pointing import GOAL, SLOTS, THING
from stages.motion import nearest_depth, place, seen_through

LEAST = 12
"""Points of a thing under which there is none."""

BELOW = 0.03
"""How far under the grip point a point must be, metres, not to be of the hand that holds nothing."""

NEAR_HAND = 0.12
"""How near to the grip point something stands that the hand takes or brings, metres."""

RADIUS = 0.06
"""Of a thing, around the median of its points, metres."""

SAME = 0.01
"""By how much a depth may differ where nothing has changed, metres."""

_BEFORE = 2
"""Frames before one that sees a place free in which the hand may have taken away what was there."""


def hindsight_targets(
    first_n3: Tensor,
    last_n3: Tensor,
    grip_F3: Tensor,
    end_3: Tensor,
    depth_FHW: Tensor,
    intrinsic_F33: Tensor,
    extrinsic_F34: Tensor,
    *,
    margin: float,
) -> Tensor:
    """Thing and goal of every frame of a demonstration, in the layout of `data_specs.pointing`: f4 [F,2,4].

    The thing is valid while it is seen to stand where it stood, the goal with it. Where the hand takes nothing away,
    it came to show something: the thing is where it ends, in every frame, and there is no goal. Where only a few points
    leave, nothing is known.

    Args:
        first_n3, last_n3: world coordinates of points of the first and of the last frame, metres, z up.
        grip_F3: grip point at each frame, in the same world; end_3: at the end of the demonstration.
        depth_FHW, intrinsic_F33, extrinsic_F34, margin: as `moving_points` takes them.
    """
    out = grip_F3.new_zeros(len(grip_F3), len(SLOTS), 4).float()
    nearest_FHW = nearest_depth(depth_FHW)
    start_n3 = first_n3[_by_hand(first_n3, grip_F3) & (first_n3[:, 2] < grip_F3[0, 2] - BELOW)]
    leave_n = leave_frames(start_n3, nearest_FHW, intrinsic_F33, extrinsic_F34, margin=margin)
    taken = start_n3[_taken_by_hand(start_n3, leave_n, grip_F3)]
    if len(taken) == 0:
        out[:, THING] = torch.cat([end_3, end_3.new_ones(1)])
        return out
    thing = _compact(taken)
    if len(thing) < LEAST:
        return out
    stands = _stands(thing, depth_FHW, intrinsic_F33, extrinsic_F34)
    out[:stands, THING] = _middle(thing)
    low_n3 = last_n3[_by_hand(last_n3, grip_F3) & (last_n3[:, 2] < grip_F3[-1, 2] - BELOW)]
    was_free_1n = seen_through(low_n3, nearest_FHW[:1], intrinsic_F33[:1], extrinsic_F34[:1], margin=margin)
    brought = _compact(low_n3[was_free_1n[0]])
    if len(brought) >= LEAST:
        out[:stands, GOAL] = _middle(brought)
    return out


def leave_frames(
    xyz_n3: Tensor, nearest_FHW: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor, *, margin: float
) -> Tensor:
    """The first frame after the first that sees free space where each point of the first was: i8 [n], F for none.

    `nearest_FHW` is of `nearest_depth`.
    """
    through_Fn = seen_through(xyz_n3, nearest_FHW, intrinsic_F33, extrinsic_F34, margin=margin)
    through_Fn[0] = False
    first_n = through_Fn.int().argmax(0)
    return torch.where(through_Fn.any(0), first_n, len(nearest_FHW))


def _by_hand(xyz_n3: Tensor, grip_F3: Tensor) -> Tensor:
    """Which points the grip point comes near to at any time."""
    apart_n: Tensor = torch.linalg.vector_norm(xyz_n3[:, None] - grip_F3, dim=-1).amin(1)
    return apart_n < NEAR_HAND


def _taken_by_hand(xyz_n3: Tensor, leave_n: Tensor, grip_F3: Tensor) -> Tensor:
    """Which points leave while the hand is near: not those that something else took."""
    frames = len(grip_F3)
    at_Bn = (leave_n - torch.arange(_BEFORE + 1, device=leave_n.device)[:, None]).clamp(0, frames - 1)
    apart_n: Tensor = torch.linalg.vector_norm(grip_F3[at_Bn] - xyz_n3, dim=-1).amin(0)
    return (leave_n < frames) & (apart_n < NEAR_HAND)


def _stands(xyz_n3: Tensor, depth_FHW: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor) -> int:
    """How many frames from the first on see the thing of these points where it stood.

    The free-space test comes late for what is pushed: the hand hides the place until it is far away. So it stands up to
    the last frame that sees half of it where it was, before any that looks past a tenth of it.
    """
    index_Fn, z_Fn, inside_Fn = place(xyz_n3, intrinsic_F33, extrinsic_F34, depth_FHW.shape[1:])
    seen_Fn = depth_FHW.flatten(1).gather(1, index_Fn)
    inside_Fn &= torch.isfinite(seen_Fn) & (seen_Fn > 0)
    there_F = (inside_Fn & ((seen_Fn - z_Fn).abs() < SAME)).float().mean(1) >= 0.5
    past_F = (inside_Fn & (seen_Fn > z_Fn + SAME)).float().mean(1) > 0.1
    past_F[0], there_F[0] = False, True
    until = int(past_F.int().argmax()) if bool(past_F.any()) else len(past_F)
    return int(torch.nonzero(there_F[:until]).max()) + 1


def _compact(xyz_n3: Tensor) -> Tensor:
    """The points around the median [m,3], without what is elsewhere."""
    if len(xyz_n3) < LEAST:
        return xyz_n3[:0]
    apart_n: Tensor = torch.linalg.vector_norm(xyz_n3 - xyz_n3.median(0).values, dim=1)
    return xyz_n3[apart_n < RADIUS]


def _middle(xyz_n3: Tensor) -> Tensor:
    """Middle of the box around points, and 1: [4]. Their mean would lie on the side that the camera sees."""
    low, high = xyz_n3.amin(0), xyz_n3.amax(0)
    return torch.cat([(low + high) / 2, low.new_ones(1)])
