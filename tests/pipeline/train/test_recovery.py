"""Displaced hands and the actions that lead back."""

from dataclasses import replace

import pytest
import torch

from data_specs.batches import PolicyBatch
from pipeline.config import RequestError
from pipeline.train.policy_sections import RecoverySection
from pipeline.train.recovery import across, displaced, way_back
from stages.draw import Draw
from stages.rotations import axis_angle_to_matrix

SECTION = RecoverySection(metres=0.02, share=0.5, step=0.01, action_metres=0.05)


def moments(size: int = 64, horizon: int = 20) -> PolicyBatch:
    batch = PolicyBatch.example(size, horizon=horizon)
    return replace(batch, action=batch.need_action()[0].clamp(-0.2, 0.2))


def test_a_displaced_hand_is_where_it_was_at_the_end_of_the_way_back() -> None:
    batch = moments()
    after = displaced(batch, SECTION, Draw.whole(64))
    away = after.need_state() - batch.need_state()
    done = (after.need_action()[0] - batch.need_action()[0])[..., :3].sum(1) * SECTION.action_metres
    torch.testing.assert_close(away[:, :3] + done, torch.zeros(64, 3), atol=1e-6, rtol=0)
    assert not away[:, 3:].any()
    assert torch.equal(after.need_action()[0][..., 3:], batch.need_action()[0][..., 3:])
    moved = away[:, :3].any(1)
    assert 16 < int(moved.sum()) < 48
    assert 0.015 < float(away[moved, :3].std()) < 0.025
    assert torch.equal(after.need_action()[0][~moved], batch.need_action()[0][~moved])


def test_the_way_back_is_straight_and_no_faster_than_asked() -> None:
    away = torch.tensor([[0.03, 0.0, -0.04], [0.0, 0.0, 0.0], [0.3, 0.0, 0.0]])
    back = way_back(away, 8, 0.01)
    assert back.shape == (3, 8, 3)
    torch.testing.assert_close(back[0, :5], torch.tensor([-0.006, 0.0, 0.008]).expand(5, 3))
    assert not back[0, 5:].abs().gt(1e-8).any() and not back[1].any()
    torch.testing.assert_close(back[2].sum(0), torch.tensor([-0.08, 0.0, 0.0]))  # as far as the chunk goes


def test_actions_stay_in_their_range() -> None:
    batch = replace(moments(), action=torch.ones(64, 20, 7))
    after = displaced(batch, RecoverySection(metres=0.5, share=1.0, step=0.05), Draw.whole(64)).need_action()[0]
    assert float(after.max()) == 1.0 and float(after.min()) < 0.5


def test_nothing_is_displaced_without_being_asked_for_or_without_actions() -> None:
    batch = moments(4)
    assert displaced(batch, RecoverySection(), Draw.whole(4)) is batch
    latent = replace(batch, action=None, is_pad=None)
    assert displaced(latent, SECTION, Draw.whole(4)) is latent


def test_a_step_cut_into_parts_displaces_the_same_hands() -> None:
    batch = moments(4)
    whole = displaced(batch, SECTION, Draw.whole(4)).need_state()
    half = PolicyBatch.example(4, horizon=20)
    first = replace(
        half,
        frames=replace(half.frames, state=batch.need_state()[:2]),
        action=batch.need_action()[0][:2],
        is_pad=batch.need_action()[1][:2],
    )
    part = displaced(first, SECTION, Draw(0, 0, start=0, count=2, total=4)).need_state()
    assert torch.equal(part, whole[:2])


def test_a_robot_without_a_position_is_refused() -> None:
    batch = PolicyBatch.example(2, state=2, action=2)
    with pytest.raises(RequestError, match="2 dimensions of the state and 2 of an action"):
        displaced(batch, SECTION, Draw.whole(2))


def test_a_turned_hand_has_turned_back_at_the_end_of_the_way() -> None:
    batch = moments()
    tilt = torch.tensor([0.05, -0.1, 0.7]).expand(64, 3)  # not quite upright
    state = torch.cat([batch.need_state()[:, :3], tilt, batch.need_state()[:, 6:]], dim=1)
    batch = replace(batch, frames=replace(batch.frames, state=state))
    after = displaced(batch, RecoverySection(radians=0.3, share=0.5), Draw.whole(64))
    back = (after.need_action()[0] - batch.need_action()[0]) * 0.5
    assert not back[..., [0, 1, 2, 3, 4, 6]].any()
    turn = torch.nn.functional.pad(back[..., 5].sum(1)[:, None], (2, 0))
    undone = axis_angle_to_matrix(turn) @ axis_angle_to_matrix(after.need_state()[:, 3:6])
    torch.testing.assert_close(undone, axis_angle_to_matrix(tilt), atol=1e-5, rtol=0)
    turned = back.any(2).any(1)
    assert 16 < int(turned.sum()) < 48
    assert float(back.abs().max()) <= 0.12 + 1e-6
    kept = [0, 1, 2, 6, 7]
    assert torch.equal(after.need_state()[:, kept], batch.need_state()[:, kept])
    assert torch.equal(after.need_state()[~turned], batch.need_state()[~turned])


def test_a_robot_without_an_orientation_is_not_turned() -> None:
    batch = PolicyBatch.example(2, state=5, action=4)
    with pytest.raises(RequestError, match=r"5 dimensions of the state and 4 of an action.*3 of orientation"):
        displaced(batch, RecoverySection(radians=0.3), Draw.whole(2))


def test_a_hand_is_displaced_across_its_way_and_not_where_it_stays() -> None:
    moves = torch.zeros(3, 20, 3)
    moves[0, :, 0] = 0.01  # along x
    moves[1, 10:, 2] = 0.01  # a pause, then up
    moves[2, :, 0] = 0.01
    is_pad = torch.zeros(3, 20, dtype=torch.bool)
    is_pad[2] = True
    away = across(torch.full((3, 3), 0.02), moves, is_pad)
    torch.testing.assert_close(away, torch.tensor([[0.0, 0.02, 0.02], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
