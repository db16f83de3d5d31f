"""What a policy's answer does when the scene is turned, and when rotations are written in another way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from stages.language import LanguageConfig
from stages.rotations import RotationConfig, axis_angle_to_matrix, matrix_to_axis_angle
from stages.vision import PatchesConfig, TowerConfig, VisionConfig
from stages.vla import VLA, VLAConfig

SMALL = VLAConfig(
    dim=32,
    depth=1,
    heads=2,
    hidden=64,
    queries=5,
    horizon=4,
    vision=VisionConfig(parts="tower", tower=TowerConfig(channels=16)),
    language=LanguageConfig(channels=48, hidden=32),
)


def _batch(action: int = 7) -> PolicyBatch:
    return PolicyBatch.example(
        4, language=48, horizon=4, action=action, images={}, vision={"dinov2": (16, 16)}, points=64
    )


def _statistics(width: int) -> dict[str, list[float]]:
    spread = torch.linspace(0.5, 2, width)
    columns = {"mean": spread * 0.1, "std": spread / 2, "min": -spread, "max": spread * 1.5}
    columns |= {"q01": -spread * 0.9, "q99": spread}
    return {name: value.tolist() for name, value in columns.items()}


def _made(config: VLAConfig) -> VLA:
    torch.manual_seed(0)
    model = VLA(config)
    model.normaliser.set_statistics({"state": _statistics(8), "action": _statistics(config.action)})
    return model


def _turned(batch: PolicyBatch, angle: float) -> PolicyBatch:
    """The same moments, seen the same, in a world that is turned about z."""
    turn, state = axis_angle_to_matrix(torch.tensor([0.0, 0.0, angle])), batch.need_state()
    orientation = matrix_to_axis_angle(turn @ axis_angle_to_matrix(state[:, 3:6]))
    state = torch.cat([state[:, :3] @ turn.T, orientation, state[:, 6:]], dim=1)
    action, _ = batch.need_action()
    return replace(batch, frames=replace(batch.frames, state=state), action=_turned_action(action, angle))


def _turned_action(action: Tensor, angle: float) -> Tensor:
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, angle]))
    return torch.cat([action[..., :3] @ turn.T, action[..., 3:6] @ turn.T, action[..., 6:]], dim=-1)


@pytest.mark.parametrize("normalise", ["mean_std", "quantile"])
def test_in_the_hands_frame_the_actions_turn_with_the_scene(normalise: str) -> None:
    model = _made(replace(SMALL, frame="hand", normalise=normalise))
    batch = _batch()
    answer, loss = model.act(batch), model(batch)[0]
    for angle in (0.4, -2.0, 3.0):
        turned = _turned(batch, angle)
        torch.testing.assert_close(model.act(turned), _turned_action(answer, angle), atol=1e-4, rtol=0)
        torch.testing.assert_close(model(turned)[0], loss, atol=1e-4, rtol=0)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_in_the_worlds_frame_they_do_not() -> None:
    model, batch = _made(SMALL), _batch()
    turned = model.act(_turned(batch, 1.0))
    assert not torch.allclose(turned, _turned_action(model.act(batch), 1.0), atol=1e-2)


@pytest.mark.parametrize("seen", ["quaternion", "6d"])
def test_absolute_rotations_are_learned_in_another_way_and_answered_in_the_datasets(seen: str) -> None:
    model = _made(replace(SMALL, rotation=RotationConfig(start=3, stored="axis_angle", seen=seen)))  # type: ignore[arg-type]
    batch = _batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    answer = model.act(batch)
    action, is_pad = batch.need_action()
    assert answer.shape == action.shape
    wanted, found = (axis_angle_to_matrix(value[..., 3:6])[~is_pad] for value in (action, answer))
    cosine = ((wanted.mT @ found).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert cosine.mean() > 0.99


def test_the_hand_frame_is_for_deltas() -> None:
    with pytest.raises(ValueError, match="deltas"):
        VLA(replace(SMALL, frame="hand", rotation=RotationConfig(start=3)))


def test_pictures_of_further_cameras_have_their_own_sizes() -> None:
    config = replace(SMALL, vision=VisionConfig(parts="patch", patch=PatchesConfig(views="rgb+cam.wrist")))
    model = _made(config)
    assert model.columns == ("language", "rgb", "state", "views/cam.wrist") and "patch_cam_wrist" in model.parts
    batch = PolicyBatch.example(2, language=48, horizon=4, images={"rgb": (224, 224), "cam.wrist": (48, 64)}, points=64)
    model(batch)[0].backward()
    assert all(p.grad is not None for p in model.parameters())
    flat = replace(batch, images={**batch.images, "cam.wrist": torch.full((2, 48, 64, 3), 200, dtype=torch.uint8)})
    same = replace(batch, images={**batch.images, "cam.wrist": torch.full((2, 224, 224, 3), 200, dtype=torch.uint8)})
    torch.testing.assert_close(model.act(flat), model.act(same), atol=1e-5, rtol=0)
    assert not torch.allclose(model.act(flat), model.act(batch), atol=1e-4)


def test_places_reach_the_tokens() -> None:
    """The same patches in other places are another picture."""
    model = _made(replace(SMALL, vision=VisionConfig(parts="patch")))
    batch = PolicyBatch.example(2, language=48, horizon=4, points=64)
    mirrored = replace(batch, images={"rgb": batch.images["rgb"].view(2, 14, 16, 224, 3).flip(1).flatten(1, 2)})
    assert not torch.allclose(model.act(mirrored), model.act(batch), atol=1e-4)
