from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_specs.batches import FrameBatch, PairBatch
from data_specs.motion import CELLS, CELLS_NAME, CELLS_WIDTH, STATISTICS_NAME, STATISTICS_WIDTH
from stages.laq import LAQConfig, LatentActionModel, parameter_table
from stages.targets import TargetConfig, mean_square

SMALL = LAQConfig(
    channels=24,
    dim=32,
    heads=2,
    hidden=64,
    s2d_layers=1,
    spatial_layers=1,
    temporal_layers=1,
    decoder_layers=1,
    codes=16,
    code_dim=8,
    motion=False,
    targets=TargetConfig(motion=0),
)
ALL_TARGETS = TargetConfig(features=1.0, coords=2.0, pixels=0.5, motion=0.3)


def _model(config: LAQConfig = SMALL) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel(config)


def _frames(seed: int, frames: int = 3) -> FrameBatch:
    batch = FrameBatch.example(frames=frames, points=600, channels=24, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    extra = {
        CELLS_NAME: torch.rand(frames, CELLS, CELLS_WIDTH, generator=generator).half(),
        STATISTICS_NAME: torch.rand(frames, STATISTICS_WIDTH, generator=generator),
    }
    pixels = torch.randint(256, (frames, 224, 224, 3), dtype=torch.uint8, generator=generator)
    return replace(batch, extra=extra).with_pixels(pixels)


@pytest.fixture(scope="module")
def pairs() -> PairBatch:
    return PairBatch(first=_frames(0), second=_frames(1))


def test_laq_full_has_42_million_parameters_and_the_table_accounts_for_all() -> None:
    with torch.device("meta"):
        model = LatentActionModel(LAQConfig())
    rows = {row.part: row for row in parameter_table(model)}
    assert list(rows) == ["S2D", "projection", "spatial encoder", "NSVQ", "total"]
    assert rows["total"].parameters == sum(p.numel() for p in model.parameters()) == pytest.approx(42e6, rel=0.03)
    assert rows["S2D"].parameters >= 6_420_480 and "6.3M" in rows["S2D"].note
    assert rows["total"].described == 42_000_000


def test_the_patch_model_is_equally_large() -> None:
    with torch.device("meta"):
        points, patch = LatentActionModel(LAQConfig()), LatentActionModel(LAQConfig(vision="patch"))
    sizes = [parameter_table(model)[-1].parameters for model in (points, patch)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"motion": True, "coords": "both"},
        {"targets": ALL_TARGETS},
        {"vision": "patch"},
        {"vision": "patch", "motion": True, "targets": ALL_TARGETS},
    ],
    ids=lambda change: "+".join(change) or "small",
)
def test_every_parameter_learns_and_the_metrics_are_named(pairs: PairBatch, change: dict[str, Any]) -> None:
    model = _model(replace(SMALL, **change))
    targets = model.config.targets
    loss, metrics = model(pairs)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    names = targets.weights()
    expected = sum(weight * metrics[f"loss/{name}"] for name, weight in names.items())
    torch.testing.assert_close(loss.detach(), expected)
    assert metrics.keys() == {"codes_used", "distance"} | {f"{kind}/{n}" for n in names for kind in ("loss", "copy")}
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())
    codes = model.encode(pairs).codes
    assert int(metrics["codes_used"]) == len(torch.unique(codes))


def test_columns_are_what_is_read(pairs: PairBatch) -> None:
    assert _model().columns == ("cells", "tokens")
    assert _model(replace(SMALL, vision="patch", targets=TargetConfig(features=0, pixels=1, motion=0))).columns == (
        "rgb",
    )
    everything = _model(replace(SMALL, motion=True, targets=ALL_TARGETS)).columns
    assert everything == ("cells", "extra/motion", "extra/motion_cells", "rgb", "tokens")
    bare = PairBatch(first=replace(pairs.first, extra={}), second=replace(pairs.second, extra={}))
    with pytest.raises(ValueError, match="with_pixels"):
        _model(replace(SMALL, vision="patch"))(bare)


def test_no_gradient_reaches_the_encoder_past_the_latents(pairs: PairBatch) -> None:
    model = _model()
    values, _ = model.targets(pairs.first)
    features = model.encoder(pairs.first).feat
    model.decoder(features, values, torch.zeros(3, 4, 8))["features"].sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.decoder.heads.parameters())


def test_one_code_changes_the_prediction_of_its_pair_only(pairs: PairBatch) -> None:
    model = _model(replace(SMALL, targets=ALL_TARGETS)).eval()
    codes = model.encode(pairs).codes
    other = codes.clone()
    other[1, 2] = (other[1, 2] + 1) % 16
    with torch.no_grad():
        before, after = model.decode(pairs.first, codes), model.decode(pairs.first, other)
    assert {name: value.shape for name, value in before.items()} == {
        "features": (3, 196, 24),
        "coords": (3, 196, 3),
        "pixels": (3, 224, 224, 3),
        "motion": (3, 1, STATISTICS_WIDTH),
    }
    for name in before:
        assert torch.equal(before[name][[0, 2]], after[name][[0, 2]])
        assert not torch.allclose(before[name][1], after[name][1], atol=1e-5)
    with pytest.raises(ValueError, match="4 codes a frame"):
        model.decode(pairs.first, codes[:, :3])


def test_pairs_do_not_see_each_other(pairs: PairBatch) -> None:
    model = _model().eval()
    together = model.encode(pairs)
    swapped = model.encode(PairBatch(first=pairs.first, second=_frames(2)))
    assert together.codes.shape == (3, 4) and together.continuous.shape == (3, 4, 8)
    assert not torch.equal(together.continuous, swapped.continuous)
    one = PairBatch(first=_frames(0, frames=1), second=_frames(1, frames=1))
    torch.testing.assert_close(model.encode(one).continuous, together.continuous[:1], atol=1e-5, rtol=1e-4)
    assert torch.equal(together.quantised, model.quantiser.codebook[together.codes])
    distance = (together.continuous - together.quantised).norm(dim=-1)
    torch.testing.assert_close(together.distance, distance)


def test_copying_the_same_frame_has_no_error(pairs: PairBatch) -> None:
    model = _model(replace(SMALL, targets=ALL_TARGETS))
    _, metrics = model(PairBatch(first=pairs.first, second=pairs.first))
    assert all(metrics[f"copy/{name}"] == 0 for name in ("features", "coords", "pixels", "motion"))


def test_empty_cells_do_not_count() -> None:
    target, predicted = torch.zeros(1, 4, 2), torch.tensor([[[1.0, 1], [3, 3], [9, 9], [9, 9]]])
    seen = torch.tensor([[True, True, False, False]])
    assert mean_square(predicted, target, seen).item() == 5.0
    assert mean_square(predicted, target, torch.zeros_like(seen)).item() == 0.0


def test_statistics_of_the_store_standardise_input_and_target(pairs: PairBatch) -> None:
    model = _model().eval()
    feat = pairs.first.need_tokens().feat.float()

    def scaled(frames: FrameBatch) -> FrameBatch:
        tokens = frames.need_tokens()
        return replace(frames, tokens=tokens.with_feat(tokens.feat.float() * 50 + 3))

    plain = model(pairs)[1]
    model.features.set(torch.full((24,), 3.0), torch.full((24,), 50.0))
    far = PairBatch(first=scaled(pairs.first), second=scaled(pairs.second))
    moved = model(far)[1]
    for name in ("loss/features", "copy/features", "distance"):
        torch.testing.assert_close(moved[name], plain[name], atol=1e-4, rtol=1e-4)
    out = model.decode(far.first, model.encode(far).codes)["features"]
    assert out.abs().mean() > 2 * feat.abs().mean()  # in the units of the store again


def _train(config: LAQConfig, pairs: PairBatch, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    model = _model(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss, _ = model(pairs)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_training_repeats_bit_for_bit_also_with_checkpointing(pairs: PairBatch) -> None:
    first, second, checkpointed = (
        _train(config, pairs, 3) for config in (SMALL, SMALL, replace(SMALL, checkpoint=True))
    )
    assert first[0] == second[0] == checkpointed[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())
    assert all(torch.equal(value, checkpointed[1][name]) for name, value in first[1].items())


def test_it_learns_what_a_few_pairs_do(pairs: PairBatch) -> None:
    losses, _ = _train(SMALL, pairs, 30)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_it_runs_under_bfloat16_autocast(pairs: PairBatch) -> None:
    model = _model(replace(SMALL, targets=ALL_TARGETS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = model(pairs)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(value.dtype == torch.float32 for value in metrics.values())


def test_no_two_entries_of_the_state_share_memory() -> None:
    values = [value for value in _model().state_dict().values() if value.numel()]
    assert len({value.data_ptr() for value in values}) == len(values)


def test_weights_of_targets_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one above"):
        _model(replace(SMALL, targets=TargetConfig(features=0, motion=0)))
    with pytest.raises(ValueError, match="none under 0"):
        _model(replace(SMALL, targets=TargetConfig(coords=-1)))


def test_tokens_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="16 channels and the model was built for 24"):
        _model()(PairBatch.example(channels=16))
