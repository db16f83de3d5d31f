"""Moments seen in a mirror that stands on the table: half of them, in training.

A table, the things on it and a hand with two fingers have no handedness: what a demonstration shows on one side of the
hand holds on the other. Cameras are mirrored with the world, so that every stored point is unprojected to its mirror
image; the frozen features of points stay as they are. Pictures are not mirrored: this is for policies that see clouds.

Vectors (places, ways) change the sign of y; rotation vectors, which turn the other way round in a mirror, those of x
and z (M R M for the mirror M = diag(1, -1, 1)).

Shape legend: B moments, H steps, S and A dimensions of state and action.
"""

from dataclasses import replace

import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from data_specs.pointing import POINTING_NAME
from pipeline.config import RequestError
from stages.draw import Draw

_WAY = (1.0, -1.0, 1.0)
_TURN = (-1.0, 1.0, -1.0)


def mirrored(batch: PolicyBatch, draw: Draw, share: float = 0.5) -> PolicyBatch:
    """The batch with a share of its moments mirrored in the plane y = 0 of the world, z up; a batch without actions as
    it is.

    The state begins with the hand's position and its orientation as axis-angle, and an action with the deltas of both,
    along the axes of the world. RequestError for fewer dimensions.
    """
    if batch.action is None:
        return batch
    camera, state_BS = batch.frames.camera, batch.need_state()
    assert camera is not None, "only policies that see clouds are mirrored"
    state, action = state_BS.shape[1], batch.action.shape[2]
    if min(state, action) < len(_WAY + _TURN):
        raise RequestError(
            f"augment.mirror mirrors the hand, and there are {state} dimensions of the state and {action} of an "
            "action: both must begin with 3 of position and 3 of orientation; set augment.mirror=false."
        )
    chosen_B = draw.uniform() < share
    extrinsic = camera.extrinsic.clone()
    extrinsic[:, :, :3] *= _signs(chosen_B, _WAY)[:, None]
    extra = dict(batch.frames.extra)
    if POINTING_NAME in extra:
        extra[POINTING_NAME] = extra[POINTING_NAME] * _signs(chosen_B, (*_WAY, 1.0))[:, None]
    frames = replace(
        batch.frames, camera=replace(camera, extrinsic=extrinsic), state=_mirror(state_BS, chosen_B), extra=extra
    )
    return replace(batch, frames=frames, action=_mirror(batch.action, chosen_B[:, None]))


def _mirror(vector: Tensor, chosen: Tensor) -> Tensor:
    """[..., S or A] with position and rotation vector mirrored where `chosen` [...]."""
    rest = (1.0,) * (vector.shape[-1] - len(_WAY + _TURN))
    return vector * _signs(chosen, (*_WAY, *_TURN, *rest))


def _signs(chosen: Tensor, signs: tuple[float, ...]) -> Tensor:
    """[..., n]: these signs where `chosen` [...], else 1."""
    return torch.where(chosen[..., None], torch.tensor(signs, device=chosen.device), 1.0)
