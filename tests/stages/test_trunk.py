from dataclasses import replace

import pytest
import torch

from data_specs.batches import PolicyBatch
from stages.language import LanguageConfig
from stages.trunk import load_trunk
from stages.vision import TowerConfig, VisionConfig
from stages.vla import VLA, VLAConfig

SMALL = VLAConfig(
    dim=32,
    depth=2,
    heads=2,
    hidden=64,
    queries=6,
    horizon=4,
    vision=VisionConfig(parts="tower", tower=TowerConfig(channels=16)),
    language=LanguageConfig(channels=48, hidden=32),
    objective="latent",
)
ACTION = replace(SMALL, objective="action")


def _batch() -> PolicyBatch:
    return PolicyBatch.example(3, language=48, horizon=4, images={}, vision={"dinov2": (16, 16)})


def test_an_action_run_starts_from_the_trunk_of_a_latent_run() -> None:
    batch = _batch()
    before, after = VLA(SMALL), VLA(ACTION)
    before.calibrate([batch])
    head = {name: tensor.clone() for name, tensor in after.head.state_dict().items()}
    report = load_trunk(after, before.state_dict())
    assert torch.equal(after._features(batch)[0], before._features(batch)[0])
    assert all(torch.equal(after.head.state_dict()[name], tensor) for name, tensor in head.items())
    assert set(report.loaded) | set(report.new) == set(after.state_dict())
    assert all(name.startswith(("head.", "normaliser.")) for name in report.new) and not report.left
    assert "backbone" in report.lines()[0] and "head" in report.lines()[1]
    after(batch)[0].backward()
    assert all(p.grad is not None for p in after.parameters())


def test_what_the_run_did_not_have_is_new_and_said() -> None:
    run = VLA(replace(SMALL, state=0)).state_dict()
    both = replace(ACTION, vision=replace(SMALL.vision, parts="patch+tower"))
    report = load_trunk(VLA(both), run)
    new = {name for name in report.new if not name.startswith(("head.", "normaliser."))}
    assert new == {
        "state.weight",
        "state.bias",
        "types.state",
        "types.patch",
        "vision.patch.embed.weight",
        "vision.patch.embed.bias",
    }
    report = load_trunk(VLA(replace(ACTION, state=14)), VLA(SMALL).state_dict())
    assert "state.weight" in report.new and "state.bias" in report.loaded
    report = load_trunk(VLA(replace(ACTION, language=LanguageConfig(channels=0))), run)
    assert any(name.startswith("language.") for name in report.left) and "left in the run" in report.lines()[-1]


def test_another_trunk_is_refused_and_nothing_changes() -> None:
    for other, message in (
        (replace(SMALL, hidden=32), "build the policy with the sizes of the run"),
        (replace(SMALL, depth=1), "another backbone"),
        (replace(SMALL, backbone="vggt"), "another backbone"),
    ):
        model = VLA(ACTION)
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_trunk(model, VLA(other).state_dict())
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
