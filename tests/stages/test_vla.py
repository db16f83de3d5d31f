from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_specs.batches import LanguageBatch, PolicyBatch
from stages.draw import Draw
from stages.heads.act import ACTHeadConfig
from stages.heads.chunk import ChunkConfig
from stages.heads.diffusion import DiffusionHeadConfig
from stages.heads.latent import LatentConfig
from stages.language import LanguageConfig
from stages.vision import ConcertoConfig, PatchesConfig, TowerConfig, VGGTTokensConfig, VisionConfig
from stages.vla import VLA, AdapterConfig, VLAConfig

PARTS = ("patch", "tower", "concerto", "vggt")
SMALL = VLAConfig(
    dim=32,
    depth=2,
    heads=2,
    hidden=64,
    queries=6,
    horizon=4,
    vision=VisionConfig(
        tower=TowerConfig(channels=16),
        concerto=ConcertoConfig(channels=24, dim=16, layers=1, heads=2, hidden=32),
        vggt=VGGTTokensConfig(channels=20),
    ),
    language=LanguageConfig(channels=48, hidden=32),
    adapter=AdapterConfig(channels=20, bottleneck=16, heads=2),
    chunk=ChunkConfig(hidden=32),
    act=ACTHeadConfig(dim=32, heads=2, hidden=64, posterior_layers=1, latent=4),
    diffusion=DiffusionHeadConfig(dim=32, layers=1, heads=2, hidden=64, levels=20, steps=5, repeats=16),
    latent=LatentConfig(hidden=32),
)


def small(parts: str = "patch", **changes: Any) -> VLAConfig:
    return replace(SMALL, vision=replace(SMALL.vision, parts=parts), **changes)


def model(config: VLAConfig) -> VLA:
    torch.manual_seed(0)
    made = VLA(config)
    with torch.no_grad():  # as after training: gates are open
        for name, parameter in made.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    return made


def example(size: int = 3, **changes: Any) -> PolicyBatch:
    sizes: dict[str, Any] = {
        "points": 400,
        "channels": 24,
        "language": 48,
        "horizon": 4,
        "vision": {"dinov2": (16, 16), "vggt": (21, 20)},
    }
    return PolicyBatch.example(size, **{**sizes, **changes})


@pytest.fixture(scope="module")
def batch() -> PolicyBatch:
    return example()


@pytest.mark.parametrize("backbone", ["graph", "vggt"])
@pytest.mark.parametrize("parts", ["", *PARTS, "patch+concerto", "tower+vggt", "+".join(PARTS)])
def test_every_set_of_parts_learns_in_all_its_parameters(batch: PolicyBatch, parts: str, backbone: Any) -> None:
    made = model(small(parts, backbone=backbone))
    made.calibrate([batch])
    loss, metrics = made(batch)
    loss.backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert not silent
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())
    answer = made.eval().act(batch)
    assert answer.shape == (3, 4, 7) and answer.dtype == torch.float32


def test_columns_are_what_is_read() -> None:
    assert model(small("patch")).columns == ("language", "rgb", "state")
    assert model(small("tower")).columns == ("language", "state", "vision/dinov2")
    assert model(small("concerto", state=0)).columns == ("language", "tokens")
    assert model(small("tower", backbone="vggt")).columns == ("language", "state", "vision/dinov2", "vision/vggt")
    mute = small("vggt", language=LanguageConfig(channels=0))
    assert model(mute).columns == ("state", "vision/vggt")
    views = replace(mute, vision=replace(SMALL.vision, parts="patch", patch=PatchesConfig(views="rgb+wrist")))
    assert model(views).columns == ("rgb", "state", "views/wrist")
    towers = replace(mute, vision=replace(SMALL.vision, parts="tower", tower=TowerConfig(names="dinov2+siglip")))
    assert model(towers).columns == ("state", "vision/dinov2", "vision/siglip")


def test_what_is_not_a_column_is_not_needed(batch: PolicyBatch) -> None:
    frames = replace(batch.frames, tokens=None, cells=None, points=None, camera=None, rgb=None)
    bare = replace(batch, images={}, frames=frames)
    made = model(small("tower+vggt"))
    assert torch.equal(made(bare)[0], made(batch)[0])
    only_points = replace(batch, images={}, frames=replace(batch.frames, vision={}, rgb=None, points=None))
    assert model(small("concerto")).act(only_points).shape == (3, 4, 7)


def test_what_is_missing_is_said(batch: PolicyBatch) -> None:
    for parts, lacking, message in (
        ("patch", replace(batch, images={}), "no pictures of 'rgb'"),
        ("tower", replace(batch, frames=replace(batch.frames, vision={})), "no vision/dinov2"),
        ("concerto", replace(batch, frames=replace(batch.frames, tokens=None)), "no tokens"),
        ("patch", replace(batch, language=None), "no language"),
        ("patch", replace(batch, frames=replace(batch.frames, state=None)), "no state"),
        ("patch", replace(batch, action=None), "no actions"),
        ("patch", example(horizon=3), "have 3 steps and the policy was built for 4"),
        ("patch", example(action=6), "actions have 6 dimensions"),
        ("patch", example(state=9), "states have 9 dimensions"),
        ("patch", example(language=40), "40 channels and the policy was built for 48"),
        ("tower", example(vision={"dinov2": (16, 15)}), "15 channels"),
        ("tower", example(vision={"dinov2": (17, 16)}), "no square grid"),
        ("concerto", example(channels=32), "32 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            model(small(parts))(lacking)
    with pytest.raises(ValueError, match="no codes"):
        model(small(objective="latent"))(replace(batch, codes=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "mlp"}, "no head 'mlp'"),
        ({"backbone": "gnn"}, "no backbone 'gnn'"),
        ({"objective": "reward"}, "no objective 'reward'"),
        ({"token_dropout": 1.0}, "token_dropout"),
        ({"connectivity": 6}, "4 or 8"),
        ({"state": 0, "frame": "hand"}, "frame=world"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLA(small(**change))
    with pytest.raises(ValueError, match="no vision 'dino'"):
        VLA(small("dino"))
    with pytest.raises(ValueError, match="twice"):
        VLA(small("patch+patch"))


@pytest.mark.parametrize("backbone", ["graph", "vggt"])
def test_what_is_under_the_mask_of_the_words_changes_nothing(batch: PolicyBatch, backbone: Any) -> None:
    made = model(small("tower", backbone=backbone)).eval()
    words = batch.need_language()
    assert not bool(words.mask.all())
    noise = words.feat.clone()
    noise[~words.mask] = torch.nan
    changed = replace(batch, language=replace(words, feat=noise))
    assert torch.equal(made.act(changed), made.act(batch))
    longer = LanguageBatch(
        feat=torch.cat([words.feat, torch.full((3, 5, 48), 7.0)], dim=1),
        mask=torch.cat([words.mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(made.act(replace(batch, language=longer)), made.act(batch), atol=1e-5, rtol=0)
    heard = words.feat.clone()
    heard[:, 0] += 3
    assert not torch.allclose(made.act(replace(batch, language=replace(words, feat=heard))), made.act(batch), atol=1e-3)
    # and its gradient: a loss is not pulled by padding
    made.train()
    made(batch)[0].backward()
    before = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    made(changed)[0].backward()
    for name, p in made.named_parameters():
        assert p.grad is not None and torch.equal(p.grad, before[name]), name


def test_moments_do_not_see_each_other(batch: PolicyBatch) -> None:
    made = model(small("+".join(PARTS))).eval()
    other = replace(batch, images={"rgb": batch.images["rgb"].clone()})
    other.images["rgb"][1] = 0
    change = (made.act(other) - made.act(batch)).abs().amax((1, 2))
    assert change[1] > 1e-4 and change[0] < 1e-6 and change[2] < 1e-6


def test_padded_steps_get_no_gradient_and_actions_are_learned_in_normalised_units(batch: PolicyBatch) -> None:
    made = model(small("tower"))
    action, is_pad = batch.need_action()
    assert bool(is_pad.any())
    wild = torch.where(is_pad[..., None], 1e3, action)
    loss, metrics = made(batch)
    assert torch.equal(made(replace(batch, action=wild))[0], loss)
    rows = action[~is_pad]
    columns = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.amin(0), "max": rows.amax(0)}
    columns |= {"q01": columns["min"], "q99": columns["max"]}
    statistics = {name: value.tolist() for name, value in columns.items()}
    made.normaliser.set_statistics({"action": statistics, "state": _wide_state()})
    scaled = made(batch)[1]["l1"]
    made.normaliser.set_statistics(
        {"action": {name: [10 * x for x in value] for name, value in statistics.items()}, "state": _wide_state()}
    )
    assert torch.allclose(made(replace(batch, action=action * 10))[1]["l1"], scaled, atol=1e-5)
    torch.testing.assert_close(metrics["l1"], loss.detach())


def _wide_state() -> dict[str, list[float]]:
    known = {"mean": 0.0, "std": 1.0, "min": -3.0, "max": 3.0, "q01": -2.0, "q99": 2.0}
    return {name: [value] * 8 for name, value in known.items()}


def test_checkpointing_changes_no_gradient(batch: PolicyBatch) -> None:
    for backbone in ("graph", "vggt"):
        gradients: list[list[Tensor]] = []
        for checkpoint in (False, True):
            made = model(small("concerto+tower", backbone=backbone, checkpoint=checkpoint))
            made(batch)[0].backward()
            gradients.append([p.grad for p in made.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(list(made.parameters()))
        for plain, recomputed in zip(*gradients, strict=True):
            torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


def test_dropout_is_of_training_alone_and_comes_from_the_draw(batch: PolicyBatch) -> None:
    made = model(small("tower", token_dropout=0.5, state_dropout=0.5))
    losses = [made(batch, Draw.whole(3, seed=seed))[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    plain = model(small("tower"))
    assert torch.equal(made.act(batch), plain.act(batch))
    made.eval()
    assert torch.equal(made(batch, Draw.whole(3))[0], plain.eval()(batch)[0])


@pytest.mark.parametrize(("head", "name", "steps"), [("chunk", "l1", 80), ("act", "l1", 80), ("diffusion", "mse", 150)])
def test_every_head_learns_a_batch_by_heart(batch: PolicyBatch, head: Any, name: str, steps: int) -> None:
    made = model(small("tower", head=head))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(steps):
        optimizer.zero_grad()
        loss, metrics = made(batch, Draw.whole(3, step=step))
        loss.backward()
        optimizer.step()
        last = metrics[name].item()
        first = first or last
    assert last < 0.5 * first
    action, is_pad = batch.need_action()
    error = (made.eval().act(batch, Draw.whole(3)) - action).abs().mean(-1)[~is_pad].mean()
    assert error < 0.6 * (first if name == "l1" else action.abs().mean(-1)[~is_pad].mean())


def test_latent_actions_are_learned_and_answered(batch: PolicyBatch) -> None:
    made = model(small("tower", objective="latent"))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = made(replace(batch, action=None, is_pad=None))
        loss.backward()
        optimizer.step()
    assert batch.codes is not None
    assert metrics["accuracy"] == 1 and torch.equal(made.codes(batch), batch.codes)
    with pytest.raises(ValueError, match="objective=action"):
        made.act(batch)
    with pytest.raises(ValueError, match="not with latent ones"):
        model(small("tower")).codes(batch)
    with pytest.raises(ValueError, match=r"codes have shape \[3, 3\]"):
        made(replace(batch, codes=batch.codes[:, :3]))


def test_calibration_standardises_every_frozen_feature(batch: PolicyBatch) -> None:
    made = model(small("+".join(PARTS), backbone="vggt"))
    made.calibrate([batch, example(seed=1)])
    found = {name: module for name, module in made.named_modules() if type(module).__name__ == "Standardise"}
    assert sorted(found) == [
        "backbone.features",
        "language.features",
        "vision.concerto.features",
        "vision.tower_dinov2.features",
        "vision.vggt.features",
    ]
    feat = torch.cat([b.frames.vision["dinov2"].flatten(0, 1).float() for b in (batch, example(seed=1))])
    standard = found["vision.tower_dinov2.features"](feat)
    torch.testing.assert_close(standard.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)
    assert all(bool((module.deviation != 1).all()) for module in found.values())


def test_the_config_follows_a_store() -> None:
    channels = {"tokens": 896, "language": 2048, "vision/dinov2": 1024, "vision/vggt": 128}
    config = small("concerto+tower+vggt", backbone="vggt").for_store(state=14, action=14, channels=channels)
    assert (config.state, config.action, config.language.channels) == (14, 14, 2048)
    assert config.vision.concerto.channels == 896 and config.vision.tower.channels == 1024
    assert config.vision.vggt.channels == config.adapter.channels == 128
    blind = small(state=0, language=LanguageConfig(channels=0)).for_store(state=14, action=7, channels=channels)
    assert blind.state == 0 and blind.language.channels == 0
