"""Slots find what they are taught to, whatever way the scene is turned, and say when they lack something."""

from dataclasses import replace

import pytest
import torch

from data_specs.batches import FrameBatch, PolicyBatch
from data_specs.pointing import POINTING_COLUMN, POINTING_NAME
from stages.language import LanguageConfig
from stages.pointing import Pointing, PointingConfig
from stages.points import camera_centre
from stages.vision import VisionConfig
from stages.vla import VLA, VLAConfig

CONFIG = PointingConfig(
    channels=16, features=4, points=150, text=16, hidden=16, shape=16, relation=32, relations=2,
    thing=0.3, goal=0.3, around=0.6,  # the made-up scene is two metres wide
)  # fmt: skip


def made_up(size: int = 3, seed: int = 0, points: int = 200) -> PolicyBatch:
    batch = PolicyBatch.example(size, points=points, channels=16, language=12, horizon=4, images={}, seed=seed)
    target = torch.zeros(size, 2, 4)
    cloud = points_of(batch)
    target[:, 0, :3], target[:, 0, 3] = cloud[:, 5], 1.0
    return with_target(batch, target)


def points_of(batch: PolicyBatch) -> torch.Tensor:
    from stages.clouds import unpack_clouds

    return unpack_clouds(batch.frames, width=224).xyz


def with_target(batch: PolicyBatch, target: torch.Tensor) -> PolicyBatch:
    frames = batch.frames
    return replace(batch, frames=replace(frames, extra={**frames.extra, POINTING_NAME: target}))


def policy(**more: object) -> VLA:
    torch.manual_seed(0)
    config = VLAConfig(
        dim=24, depth=1, heads=2, hidden=32, queries=2, horizon=4, frame="hand",
        vision=VisionConfig(parts="pointing", pointing=CONFIG), language=LanguageConfig(channels=12, hidden=16),
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return VLA(config)


def turned(batch: PolicyBatch, angle: float, shift: tuple[float, float]) -> PolicyBatch:
    """The batch with world, hand and actions turned about the vertical and moved."""
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    move = torch.tensor([*shift, 0.0])
    frames = batch.frames
    assert frames.camera is not None and frames.state is not None
    extrinsic = frames.camera.extrinsic.clone()
    extrinsic[:, :, :3] = extrinsic[:, :, :3] @ turn.T
    extrinsic[:, :, 3] -= (extrinsic[:, :, :3] @ move[None, :, None])[..., 0]
    state = frames.state.clone()
    state[:, :3] = state[:, :3] @ turn.T + move
    state[:, 5] += angle
    camera = replace(frames.camera, extrinsic=extrinsic)
    return replace(batch, frames=replace(frames, camera=camera, state=state))


def upright(batch: PolicyBatch) -> PolicyBatch:
    state = batch.frames.state
    assert state is not None
    state = state.clone()
    state[:, 3:5] = 0.0
    return replace(batch, frames=replace(batch.frames, state=state))


def test_turning_and_moving_the_scene_turns_the_actions_and_nothing_else() -> None:
    model = policy().eval()
    batch = upright(made_up())
    other = turned(batch, 0.7, (0.2, -0.1))
    with torch.no_grad():
        before, after = model.act(batch), model.act(other)
    cosine, sine = torch.cos(torch.tensor(0.7)), torch.sin(torch.tensor(0.7))
    x, y = before[..., 0], before[..., 1]
    torch.testing.assert_close(after[..., 0], cosine * x - sine * y, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(after[..., 1], sine * x + cosine * y, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(after[..., 2], before[..., 2], atol=2e-4, rtol=1e-3)
    assert (before - after).abs().max() > 1e-3


def test_attention_sums_to_one_and_never_falls_on_padding() -> None:
    model = policy().eval()
    batch = made_up()
    batch = replace(batch, frames=replace(batch.frames, **vars_of(FrameBatch.example(3, points=200, channels=16))))
    part = model.parts["pointing"]
    assert isinstance(part, Pointing) and model.language is not None
    pointed = part.point(batch, model.language(batch.need_language()))
    torch.testing.assert_close(pointed.weight.sum(-1), torch.ones(3, 2))
    assert pointed.weight[(pointed.cloud.token < 0)[:, None].expand_as(pointed.weight)].sum() == 0


def test_what_is_high_over_the_grip_is_not_looked_at() -> None:
    model = policy().eval()
    part, batch = model.parts["pointing"], made_up()
    assert isinstance(part, Pointing) and model.language is not None
    language = model.language(batch.need_language())
    state = batch.need_state().clone()
    state[:, 2] = points_of(batch)[..., 2].quantile(0.5)
    batch = replace(batch, frames=replace(batch.frames, state=state))
    with torch.no_grad():
        before = part.point(batch, language)
        part.config = replace(part.config, over=0.1)
        after = part.point(batch, language)
    high = (after.cloud.xyz[..., 2] > state[:, None, 2] + 0.1)[:, None].expand_as(after.weight)
    assert float(before.weight[high].sum()) > 0.1 and float(after.weight[high].sum()) == 0
    torch.testing.assert_close(after.weight.sum(-1), torch.ones(3, 2))


def test_a_limit_under_the_grip_is_refused() -> None:
    with pytest.raises(ValueError, match="metres over the grip"):
        Pointing(replace(CONFIG, over=-0.1), 24)


def vars_of(frames: FrameBatch) -> dict[str, object]:
    return {"tokens": frames.tokens, "points": frames.points, "camera": frames.camera}


def test_a_slot_learns_to_point_where_hindsight_says() -> None:
    model = policy()
    batch = made_up()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        loss, metrics = model(batch)
        first = float(metrics["loss/thing"]) if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(metrics["loss/thing"]) < 0.5 * first
    assert float(metrics["loss/goal"]) == 0.0  # no moment of the batch has one


def test_a_slot_learns_how_far_the_middle_is_from_what_is_seen() -> None:
    model = policy(auxiliary=1.0)
    part = model.parts["pointing"]
    assert isinstance(part, Pointing) and model.language is not None
    part.config = replace(part.config, points=1000, colour_noise=0.0)  # the mean stays where it is
    part.roles.noise = 0.0
    batch = made_up()
    camera = batch.frames.camera
    assert camera is not None
    with torch.no_grad():
        mean = part.point(batch, model.language(batch.need_language())).mean[:, 0]
    away = (mean - camera_centre(camera.extrinsic))[:, :2]
    target = torch.zeros(3, 2, 4)
    target[:, 0, :3], target[:, 0, 3] = mean, 1.0
    target[:, 0, :2] += 0.02 * away / away.norm(dim=-1, keepdim=True)
    learned = [*part.outlines.centre.parameters(), *part.outlines.centre_out.parameters()]
    optimiser = torch.optim.Adam(learned, lr=1e-2)
    off = []
    for _ in range(40):
        loss, metrics = model(with_target(batch, target))
        off.append(float(metrics["loss/thing_off"]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert off[0] > 0.5 and sum(off[-5:]) < 0.5 * sum(off[:5])


def test_the_middle_is_a_bounded_way_from_the_mean_along_the_table() -> None:
    model = policy().eval()
    part = model.parts["pointing"]
    assert isinstance(part, Pointing) and model.language is not None
    for parameter in part.outlines.centre_out.parameters():
        parameter.data.fill_(100.0)
    batch = made_up()
    pointed = part.point(batch, model.language(batch.need_language()))
    shift = pointed.place - pointed.mean
    assert shift[..., 2].abs().max() < 1e-6
    torch.testing.assert_close(shift[..., :2].norm(dim=-1), torch.full((3, 2), 0.04 * 2**0.5), atol=1e-4, rtol=1e-3)


def test_the_same_scene_asks_for_other_actions_where_other_words_are_said() -> None:
    model = policy().eval()
    batch = made_up()
    language = batch.need_language()
    other = replace(batch, language=replace(language, feat=language.feat.flip(0)))
    part = model.parts["pointing"]
    assert model.language is not None
    with torch.no_grad():
        first, second = (part(b, model.language(b.need_language())).summary for b in (batch, other))
    assert first is not None and second is not None and (first - second).abs().max() > 1e-3


def test_every_parameter_learns() -> None:
    model = policy()
    batch = made_up()
    target = batch.frames.extra[POINTING_NAME].clone()
    target[:, 1] = target[:, 0]
    loss, _ = model(with_target(batch, target))
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_what_it_reads_and_what_it_learns_from() -> None:
    model = policy()
    assert model.columns == ("camera", "language", "points", "state", "tokens")
    assert model.targets == (POINTING_COLUMN,)
    batch = made_up()
    without = replace(batch, frames=replace(batch.frames, extra={}))
    with pytest.raises(ValueError, match=r"robot\.pointing=true"):
        model(without)
    model.eval()
    assert model.act(replace(without, action=None, is_pad=None, codes=None)).shape == (3, 4, 7)


def test_without_an_instruction_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="pointing needs an instruction"):
        Pointing(CONFIG, 24)(made_up(), None)


def test_tokens_of_other_channels_are_refused() -> None:
    model = policy().eval()
    with pytest.raises(ValueError, match=r"vision\.pointing\.channels"):
        model.act(PolicyBatch.example(2, points=64, channels=20, language=12, images={}))
