import json

import pytest
import torch
from concerto_clouds import surface

from stages.concerto import BASE, IGNORED_KEYS, LARGE, SMALL, TINY, ConcertoConfig, build_concerto, init_random


@pytest.mark.parametrize("config", [SMALL, BASE, LARGE, TINY])
def test_a_configuration_survives_json(config):
    assert ConcertoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_training_keys_are_accepted_and_change_nothing():
    assert ConcertoConfig.from_dict(TINY.to_dict() | dict.fromkeys(IGNORED_KEYS, 0.3)) == TINY


def test_an_unknown_key_names_the_choices():
    with pytest.raises(ValueError, match=r"'enc_depth'\. Did you mean 'enc_depths'\?.*shuffle_orders"):
        build_concerto({"enc_depth": [1]})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"enc_channels": [16, 32]}, "enc_channels has 2 entries, expected 5"),
        ({"stride": [2, 2]}, "stride has 2 entries, expected 4"),
        ({"enc_num_head": [3, 2, 4, 6, 8]}, "16 channels do not split into 3 heads"),
        ({"order": ["z", "peano"]}, "hilbert-trans"),
        ({"enc_patch_size": [0] * 5}, "positive"),
        ({"enable_rpe": True}, "enable_rpe"),
        ({"enc_mode": False}, "no decoder"),
    ],
)
def test_values_that_do_not_fit(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_concerto(TINY.to_dict() | change)


@pytest.mark.parametrize("change", [{"layer_scale": 0.1}, {"pre_norm": False}, {"qkv_bias": False}, {"qk_scale": 1.0}])
def test_variants_of_the_block_compute_something_else(change):
    cloud = surface(0, 300)
    out = []
    for config in (TINY.to_dict(), TINY.to_dict() | change):
        model = build_concerto(config).eval()
        init_random(model, 0)
        for name, parameter in model.named_parameters():
            if "qkv.bias" in name:
                torch.nn.init.ones_(parameter)
            if "gamma" in name:
                torch.nn.init.constant_(parameter, 0.1)
        with torch.inference_mode():
            out.append(model(cloud)["feat"])
    assert torch.isfinite(out[1]).all()
    assert not torch.allclose(out[0], out[1], atol=1e-3)


def test_random_weights_depend_on_the_seed_and_the_name_only():
    models = [build_concerto(TINY.to_dict()) for _ in range(3)]
    torch.manual_seed(1)
    init_random(models[0], 7)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    init_random(models[1], 7)
    init_random(models[2], 8)
    torch.set_rng_state(before)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    weights = [name for name in first if first[name].ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in weights)
    # Two parameters of one shape differ, because their names do.
    assert not torch.equal(first["enc.enc0.block0.cpe.1.weight"], first["enc.enc0.block0.attn.proj.weight"])


def test_random_weights_leave_the_global_state_alone():
    before = torch.get_rng_state()
    model = build_concerto(TINY.to_dict())
    torch.set_rng_state(before)
    init_random(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(3))
def test_random_features_tell_points_apart(seed):
    model = build_concerto(TINY.to_dict()).eval()
    init_random(model, seed)
    with torch.inference_mode():
        feat = model(surface(seed, 2000, extent=100))["feat"]
    assert feat.shape[1] == TINY.out_channels
    assert feat.abs().max() < 100  # far inside float16
    assert feat.std(0).min() > 0.05
    singular = torch.linalg.svdvals(feat - feat.mean(0))
    assert (singular > 0.01 * singular[0]).sum() > len(singular) // 2
