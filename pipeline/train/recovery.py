"""Hands that stand beside where the demonstration had them, with actions that lead back: corrective labels.

A cloned policy drifts to places beside the demonstrated ones and has not been shown how to come back from there. Where
it learns of its hand from the state alone and sees things relative to it, such moments can be made from those that
there are: the state's position is displaced, and the actions of the chunk undo the displacement on top of what they did
(in the spirit of DART, Laskey et al. 2017, which makes them while recording, and of the corrective labels of Ke et al.
2023). Pictures and clouds still show the hand where it was: this is not for policies that look for it there.

A hand that moves is displaced across its way only: displaced along it, what comes next would look like what has been,
and a policy stalls where the demonstrations turn. One that stays where it is is not displaced: it does something there
(it grasps), or is done, and where it has come to rest another demonstration may begin to push.

A hand may also be turned: demonstrations turn it at once, in their first frames, and show little of how things lie to
a hand that is not turned to them yet.

Shape legend: B moments, H steps, S and A dimensions of state and action.
"""

from dataclasses import replace

import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.train.policy_sections import RecoverySection
from stages.draw import Draw
from stages.rotations import axis_angle_to_matrix, matrix_to_axis_angle

_GREATEST = 1.0
"""Of an action: controllers take deltas in -1 … 1."""

_SOON = 4
"""Steps that say whether the hand moves, and which way."""

_REST = 0.004
"""Metres in these steps under which it stays where it is."""


def displaced(batch: PolicyBatch, section: RecoverySection, draw: Draw) -> PolicyBatch:
    """The batch with a share of the hands moved aside, and a share turned; a batch without actions as it is.

    The state begins with the hand's position, in metres, and its orientation as axis-angle, and an action with the
    deltas of both, along the axes of the world, z up. RequestError for fewer dimensions than are displaced.
    """
    if batch.action is None:
        return batch
    if section.metres:
        _check(batch, 3, "recovery.metres", "3 of position")
        batch = _moved(batch, section, draw)
    if section.radians:
        _check(batch, 6, "recovery.radians", "3 of position and 3 of orientation")
        batch = _turned(batch, section, draw)
    return batch


def _check(batch: PolicyBatch, least: int, name: str, what: str) -> None:
    state, action = batch.need_state().shape[1], batch.need_action()[0].shape[2]
    if state < least or action < least:
        raise RequestError(
            f"{name} displaces the hand, and there are {state} dimensions of the state and {action} of an action: both "
            f"must begin with {what}; set {name}=0."
        )


def _moved(batch: PolicyBatch, section: RecoverySection, draw: Draw) -> PolicyBatch:
    state_BS, (action_BHA, is_pad_BH) = batch.need_state(), batch.need_action()
    away_B3 = across(section.metres * draw.normal(3), action_BHA[..., :3] * section.action_metres, is_pad_BH)
    away_B3 = away_B3 * (draw.uniform() < section.share)[:, None]
    state = torch.cat([state_BS[:, :3] + away_B3, state_BS[:, 3:]], dim=1)
    back_BH3 = way_back(away_B3, action_BHA.shape[1], section.step) / section.action_metres
    return _with(batch, state, slice(0, 3), back_BH3, away_B3.any(1))


def _turned(batch: PolicyBatch, section: RecoverySection, draw: Draw) -> PolicyBatch:
    state_BS, action_BHA = batch.need_state(), batch.need_action()[0]
    away_B1 = section.radians * draw.normal(1) * (draw.uniform(1) < section.share)
    away_B3 = torch.nn.functional.pad(away_B1, (2, 0))  # about z, the world's
    orientation_B33 = axis_angle_to_matrix(away_B3) @ axis_angle_to_matrix(state_BS[:, 3:6])
    state = torch.cat([state_BS[:, :3], matrix_to_axis_angle(orientation_B33), state_BS[:, 6:]], dim=1)
    back_BH3 = way_back(away_B3, action_BHA.shape[1], section.turn) / section.action_radians
    return _with(batch, state, slice(3, 6), back_BH3, away_B3.any(1))


def _with(batch: PolicyBatch, state_BS: Tensor, part: slice, back_BHp: Tensor, chosen_B: Tensor) -> PolicyBatch:
    """The batch with the chosen hands in these states, and what leads back added to that part of their actions."""
    before_BS, action_BHA = batch.need_state(), batch.need_action()[0].clone()
    led_BHp = (action_BHA[..., part] + back_BHp).clamp(-_GREATEST, _GREATEST)
    action_BHA[..., part] = torch.where(chosen_B[:, None, None], led_BHp, action_BHA[..., part])
    state = torch.where(chosen_B[:, None], state_BS, before_BS)
    return replace(batch, frames=replace(batch.frames, state=state), action=action_BHA)


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
