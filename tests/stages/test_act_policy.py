from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_specs.batches import PolicyBatch
from stages.act import ACTConfig, ACTPolicy
from stages.draw import Draw
from stages.language import LanguageConfig
from stages.layers import parameters_of
from stages.normalise import fixed_statistics
from stages.policy_table import parameter_table
from stages.resnet import ResNetConfig
from stages.rotations import RotationConfig

SMALL = ACTConfig(
    cameras=("rgb", "wrist"),
    horizon=5,
    state=8,
    action=7,
    dim=32,
    heads=2,
    hidden=48,
    dropout=0.0,
    layers=2,
    posterior_layers=1,
    latent=4,
    resnet=ResNetConfig(stem=8, widths=(8, 16), depths=(1, 1)),
)


def _policy(**changes: Any) -> ACTPolicy:
    torch.manual_seed(0)
    return ACTPolicy(replace(SMALL, **changes))


def _batch(size: int = 3, **changes: Any) -> PolicyBatch:
    sizes: dict[str, Any] = {
        "points": 16,
        "channels": 8,
        "language": 24,
        "horizon": 5,
        "images": {"rgb": (48, 48), "wrist": (32, 64)},
    }
    return PolicyBatch.example(size, **{**sizes, **changes})


@pytest.fixture(scope="module")
def batch() -> PolicyBatch:
    return _batch()


def test_the_published_sizes_have_51_6_and_84_million_parameters_and_the_table_accounts_for_all() -> None:
    with torch.device("meta"):
        policy, seven = ACTPolicy(ACTConfig()), ACTPolicy(ACTConfig(decoder_layers=7))
        shorter = ACTPolicy(ACTConfig(horizon=50))
    rows = {row.part: row for row in parameter_table(policy)}
    assert rows["total"].trained == parameters_of(policy) == 51_614_095 and rows["total"].frozen == 0
    assert rows["backbone"].trained == 11_166_912 and {"posterior", "encoder", "decoder"} <= rows.keys()
    assert round(parameters_of(seven) / 1e6) == 84
    assert parameters_of(shorter) == rows["total"].trained - 50 * 512  # a slot a step


def test_it_keeps_the_contract_of_a_policy(batch: PolicyBatch) -> None:
    policy = _policy()
    assert policy.horizon == 5 and policy.columns == ("rgb", "state", "views/wrist")
    loss, scalars = policy(batch, Draw.whole(3))
    assert loss.ndim == 0 and loss.dtype == torch.float32
    assert scalars.keys() == {"l1", "kl", "padding"} and not any(value.requires_grad for value in scalars.values())
    chunk = policy.act(replace(batch, action=None, is_pad=None))
    assert chunk.shape == (3, 5, 7) and chunk.dtype == torch.float32
    assert policy.lr_scales() == {"backbone.": 1.0}
    told = _policy(cameras=("wrist",), language=LanguageConfig(channels=24, hidden=16), state=0)
    assert told.columns == ("language", "views/wrist")
    assert told.act(batch).shape == (3, 5, 7)


@pytest.mark.parametrize("change", [{}, {"language": LanguageConfig(channels=24, hidden=16)}, {"state": 0}])
def test_every_parameter_learns(batch: PolicyBatch, change: dict[str, Any]) -> None:
    policy = _policy(**change)
    policy(batch, Draw.whole(3))[0].backward()
    idle = ("decoder.layers.0.attention.", "decoder.layers.0.norm_attention.weight")  # see test_act_head
    silent = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert all(name.startswith(idle) for name in silent), silent
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("filler", [1e4, float("nan")])
def test_what_is_in_padded_steps_changes_nothing(batch: PolicyBatch, filler: float) -> None:
    action, is_pad = batch.need_action()
    assert is_pad.any()
    results = []
    for actions in (action, action.masked_fill(is_pad[..., None], filler)):
        policy = _policy()
        loss, _ = policy(replace(batch, action=actions), Draw.whole(3))
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in policy.named_parameters()}))
    (loss, gradients), (other_loss, other) = results
    assert torch.equal(loss, other_loss)
    for name, value in gradients.items():
        found = other[name]
        assert value is not None and found is not None and torch.equal(value, found), name


def test_it_learns_a_batch_by_heart_and_answers_in_the_units_of_the_data(batch: PolicyBatch) -> None:
    policy = _policy()
    action, is_pad = batch.need_action()
    batch = replace(batch, action=10 + 3 * action)
    known = {"mean": [10.0] * 7, "std": [3.0] * 7, "min": [7.0] * 7, "max": [13.0] * 7}
    statistics = {"action": {**known, "q01": known["min"], "q99": known["max"]}, "state": fixed_statistics(8)}
    policy.normaliser.set_statistics(statistics)
    optimiser = torch.optim.Adam(policy.parameters(), lr=2e-3)
    first = last = 0.0
    for step in range(120):
        optimiser.zero_grad()
        loss, scalars = policy(batch, Draw.whole(3, step=step))
        loss.backward()
        optimiser.step()
        last = scalars["l1"].item()
        first = first or last
    assert last < 0.4 * first
    with torch.no_grad():
        error = (policy.eval().act(batch) - (10 + 3 * action)).abs().mean(-1)[~is_pad].mean()
    assert error < 0.5 * 3 * first


def test_pictures_are_told_apart_by_camera_and_place(batch: PolicyBatch) -> None:
    policy = _policy().eval()
    same = {"rgb": batch.images["rgb"], "wrist": batch.images["rgb"].flip(1)}
    swapped = {"rgb": same["wrist"], "wrist": same["rgb"]}
    with torch.no_grad():
        first, second = (policy.act(replace(batch, images=images)) for images in (same, swapped))
        flipped = policy.act(replace(batch, images={**same, "rgb": same["rgb"].flip(2)}))
    assert not torch.allclose(first, second, atol=1e-5) and not torch.allclose(first, flipped, atol=1e-5)


def test_moments_do_not_see_each_other(batch: PolicyBatch) -> None:
    policy = _policy().eval()
    images = {name: torch.cat([value[:1], value[:2]]) for name, value in batch.images.items()}
    with torch.no_grad():
        torch.testing.assert_close(policy.act(replace(batch, images=images))[0], policy.act(batch)[0])


def test_an_instruction_is_one_token_and_its_padding_is_not_seen(batch: PolicyBatch) -> None:
    policy = _policy(language=LanguageConfig(channels=24, hidden=16)).eval()
    language = batch.need_language()
    policy.calibrate([batch, batch])
    real = language.feat[language.mask]
    torch.testing.assert_close(policy.language.features.mean, real.mean(0))  # type: ignore[union-attr]
    changed = replace(language, feat=language.feat + 3 * ~language.mask[..., None])
    other = replace(language, feat=language.feat.flip(-1))
    with torch.no_grad():
        chunk = policy.act(batch)
        assert torch.equal(policy.act(replace(batch, language=changed)), chunk)
        assert not torch.allclose(policy.act(replace(batch, language=other)), chunk, atol=1e-5)
    with pytest.raises(ValueError, match="no language"):
        policy.act(replace(batch, language=None))
    _policy().calibrate(iter(()))  # nothing to take


def test_nothing_is_drawn_at_inference_and_training_repeats_by_its_draws(batch: PolicyBatch) -> None:
    policy = _policy()
    losses = [policy(batch, Draw.whole(3, step=step))[0] for step in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    policy.eval()
    before = torch.get_rng_state()
    assert torch.equal(policy.act(batch), policy.act(batch, Draw.whole(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_absolute_rotation_is_seen_as_6_numbers_and_answered_as_it_is_stored(batch: PolicyBatch) -> None:
    policy = _policy(rotation=RotationConfig(start=3, stored="axis_angle", seen="6d"))
    assert policy.decoder.action.out_features == 10
    loss, _ = policy(batch, Draw.whole(3))
    chunk = policy.act(batch)
    assert loss.isfinite() and chunk.shape == (3, 5, 7)
    assert (chunk[..., 3:6].norm(dim=-1) <= torch.pi + 1e-4).all()


def test_of_longer_chunks_the_first_steps_are_learned(batch: PolicyBatch) -> None:
    policy, longer = _policy(), _batch(horizon=9)
    action, is_pad = longer.need_action()
    cut = replace(longer, action=action[:, :5], is_pad=is_pad[:, :5])
    assert torch.equal(policy(longer, Draw.whole(3))[0], policy(cut, Draw.whole(3))[0])
    with pytest.raises(ValueError, match="chunks have 4 steps and the policy was built for 5"):
        policy(_batch(horizon=4))


def test_what_is_missing_is_named(batch: PolicyBatch) -> None:
    policy = _policy()
    with pytest.raises(ValueError, match=r"no pictures of camera 'wrist' \(it has rgb\): extract with views=wrist"):
        policy.act(replace(batch, images={"rgb": batch.images["rgb"]}))
    with pytest.raises(ValueError, match="no state"):
        policy.act(replace(batch, frames=replace(batch.frames, state=None)))
    with pytest.raises(ValueError, match="made for inference"):
        policy(replace(batch, action=None))
    with pytest.raises(ValueError, match="another robot"):
        policy(_batch(action=6))
    for cameras in ((), ("rgb", "rgb")):
        with pytest.raises(ValueError, match="at least one camera, and each once"):
            _policy(cameras=cameras)


def test_the_config_follows_the_store() -> None:
    config = replace(SMALL, language=LanguageConfig(channels=1024))
    fitted = config.for_store(state=3, action=4, channels={"language": 24, "tokens": 512})
    assert (fitted.state, fitted.action, fitted.language.channels) == (3, 4, 24)
    assert replace(config, state=0).for_store(state=3, action=4, channels={}).state == 0
    assert SMALL.for_store(state=8, action=7, channels={"language": 24}) == SMALL


def _gradients(policy: ACTPolicy, batch: PolicyBatch) -> dict[str, Tensor]:
    policy(batch, Draw.whole(3))[0].backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_it_runs_under_bfloat16_autocast_and_checkpointing_changes_nothing(batch: PolicyBatch) -> None:
    policy = _policy(language=LanguageConfig(channels=24, hidden=16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scalars = policy(batch, Draw.whole(3))
        chunk = policy.act(batch)
    loss.backward()
    assert loss.dtype == chunk.dtype == torch.float32 and loss.isfinite()
    assert all(value.dtype == torch.float32 for value in scalars.values())
    plain, checkpointed = (_gradients(_policy(checkpoint=kept), batch) for kept in (False, True))
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5)


def test_no_two_entries_of_the_state_share_memory_and_a_checkpoint_is_the_whole_policy(batch: PolicyBatch) -> None:
    policy, other = _policy().eval(), ACTPolicy(SMALL).eval()
    values = [value for value in policy.state_dict().values() if value.numel()]
    assert len({value.data_ptr() for value in values}) == len(values)
    other.load_state_dict(policy.state_dict(), strict=True)
    assert torch.equal(other.act(batch), policy.act(batch))
