"""Hands that stand beside where the demonstration had them, with actions that lead back: corrective labels.

A cloned policy drifts to places beside the demonstrated ones and has not been shown how to come back from there. Where
it learns of its hand from the state alone and sees things relative to it, such moments can be made from those that
there are: the state's position is displaced, and the actions of the chunk undo the displacement on top of what they did
(in the spirit of DART, Laskey et al. 2017, which makes them while recording, and of the corrective labels of Ke et al.
2023). Pictures and clouds still show the hand where it was: this is not for policies that look for it there.

A hand that moves is displaced across its way only: displaced along it, what comes next would look like what has been,
and a policy stalls where the demonstrations turn. One that stays where it is is not displaced: it does something there
(it grasps), or is done, and where it has come to rest another demonstration may begin to push.

Shape legend: B moments, H steps, S and A dimensions of state and action.
"""

from dataclasses import replace

import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.train.policy_sections import RecoverySection
from stages.draw import Draw

_GREATEST = 1.0
"""Of an action: controllers take deltas in -1 … 1."""

_SOON = 4
"""Steps that say whether the hand moves, and which way."""

_REST = 0.004
"""Metres in these steps under which it stays where it is."""


def displaced(batch: PolicyBatch, section: RecoverySection, draw: Draw) -> PolicyBatch:
    """The batch with a share of the hands displaced; a batch without actions as it is.

    The state begins with the hand's position, in metres, and an action with the deltas of it, both along the axes of
    the world. RequestError for fewer dimensions than these three.
    """
    if not section.metres or batch.action is None:
        return batch
    state_BS, (action_BHA, is_pad_BH) = batch.need_state(), batch.need_action()
    if state_BS.shape[1] < 3 or action_BHA.shape[2] < 3:
        raise RequestError(
            f"recovery.metres displaces the hand, and there are {state_BS.shape[1]} dimensions of the state and "
            f"{action_BHA.shape[2]} of an action: both must begin with 3 of position; set recovery.metres=0."
        )
    away_B3 = across(section.metres * draw.normal(3), action_BHA[..., :3] * section.action_metres, is_pad_BH)
    chosen_B = (draw.uniform() < section.share) & away_B3.any(1)
    away_B3 = away_B3 * chosen_B[:, None]
    state = torch.cat([state_BS[:, :3] + away_B3, state_BS[:, 3:]], dim=1)
    back_BH3 = way_back(away_B3, action_BHA.shape[1], section.step) / section.action_metres
    moved_BH3 = torch.where(
        chosen_B[:, None, None], (action_BHA[..., :3] + back_BH3).clamp(-_GREATEST, _GREATEST), action_BHA[..., :3]
    )
    action = torch.cat([moved_BH3, action_BHA[..., 3:]], dim=2)
    return replace(batch, frames=replace(batch.frames, state=state), action=action)


def across(away_B3: Tensor, moves_BH3: Tensor, is_pad_BH: Tensor) -> Tensor:
    """Displacements [B,3] without their part along the way of the hand, and none of one that stays.

    Args:
        moves_BH3: of each step, metres. is_pad_BH: steps that are not.
    """
    way_B3 = (moves_BH3 * ~is_pad_BH[..., None])[:, :_SOON].sum(1)
    far_B1: Tensor = torch.linalg.vector_norm(way_B3, dim=1, keepdim=True)
    unit_B3 = way_B3 / far_B1.clamp_min(1e-9)
    aside_B3 = away_B3 - (away_B3 * unit_B3).sum(1, keepdim=True) * unit_B3
    return aside_B3 * (far_B1 >= _REST)


def way_back(away_B3: Tensor, steps: int, step: float) -> Tensor:
    """Moves [B,steps,3] that undo a displacement, straight and `step` metres at a time until it is undone."""
    far_B1 = torch.linalg.vector_norm(away_B3, dim=1, keepdim=True).clamp_min(1e-9)
    until = step * torch.arange(steps + 1, device=away_B3.device, dtype=away_B3.dtype)
    share_BH: Tensor = (torch.minimum(until, far_B1) / far_B1).diff(dim=1)
    return -share_BH[..., None] * away_B3[:, None]
