from dataclasses import FrozenInstanceError

import pytest
import torch
from concerto_clouds import batch, surface

from stages.concerto import TINY, ConcertoEncoder, build_concerto, init_random


@pytest.fixture(scope="module")
def model():
    built = build_concerto(TINY.to_dict()).eval()
    init_random(built, 0)
    return built


@pytest.fixture(scope="module")
def cloud():
    return batch([surface(0, 900), surface(1, 400)])


def encode(model, levels=1, **arrays):
    return ConcertoEncoder(model, levels)(**arrays)


def test_color_and_normal_make_the_published_features(model, cloud):
    points = len(cloud["coord"])
    generator = torch.Generator().manual_seed(0)
    color = torch.randint(0, 256, (points, 3), dtype=torch.uint8, generator=generator)
    normal = torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=1)
    places = {name: cloud[name] for name in ("coord", "grid_coord", "offset")}
    feat = torch.cat([cloud["coord"], color.float() / 255, normal], dim=1)
    assembled = encode(model, color=color, normal=normal, **places)
    assert torch.equal(assembled.feat, encode(model, feat=feat, **places).feat)
    no_normals = torch.cat([feat[:, :6], torch.zeros(points, 3)], dim=1)
    assert torch.equal(encode(model, color=color, **places).feat, encode(model, feat=no_normals, **places).feat)
    assert not torch.allclose(assembled.feat, encode(model, color=color, **places).feat, atol=1e-3)


def test_one_level_is_the_model_itself(model, cloud):
    out = encode(model, **cloud)
    with torch.inference_mode():
        expected = model(cloud)
    for name, value in expected.items():
        assert torch.equal(getattr(out, name), value), name
    with pytest.raises(FrozenInstanceError):
        out.feat = None


@pytest.mark.parametrize(("levels", "step"), [(1, 16), (2, 8), (3, 4)])
def test_levels_concatenate_finer_and_coarser_features(model, cloud, levels, step):
    out = encode(model, levels, **cloud)
    channels = list(TINY.enc_channels[-levels:])
    assert out.feat.shape[1] == sum(channels) == ConcertoEncoder(model, levels).out_channels
    assert torch.equal(out.grid_coord[out.inverse], cloud["grid_coord"] // step)
    assert out.offset[-1] == len(out.feat)
    with torch.inference_mode():
        stages = model.levels(cloud)[-levels:]
    assert torch.equal(out.coord, stages[0].coord)
    # Each point's feature is that of its cells, from fine to coarse.
    row = torch.arange(len(out.feat))
    for i, part in enumerate(out.feat.split(channels, dim=1)):
        row = stages[i].inverse[row] if i else row
        assert torch.equal(part, stages[i].feat[row])


@pytest.mark.parametrize("levels", [0, 4, -1])
def test_other_levels_name_the_choices(model, levels):
    with pytest.raises(ValueError, match="1, 2, 3"):
        ConcertoEncoder(model, levels)


def test_inputs_that_do_not_fit(model, cloud):
    places = {name: cloud[name] for name in ("coord", "grid_coord", "offset")}
    color = torch.zeros(len(cloud["coord"]), 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="color is missing"):
        encode(model, **places)
    with pytest.raises(ValueError, match="expected uint8"):
        encode(model, color=color.float(), **places)
    with pytest.raises(ValueError, match="not both"):
        encode(model, color=color, **cloud)
    with pytest.raises(ValueError, match="normal has shape"):
        encode(model, color=color, normal=torch.zeros(3), **places)


def test_one_cloud_at_a_time_makes_bytes_independent_of_the_batch(model):
    clouds = [surface(seed, 300 + 200 * seed) for seed in range(3)]
    encoder = ConcertoEncoder(model, 2, clouds_per_run=1)
    alone = [encoder(**cloud) for cloud in clouds]
    together = encoder(**batch(clouds))
    for name in ("feat", "coord", "grid_coord"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(out, name) for out in alone])), name
    for runs in (None, 2, 5):
        other = ConcertoEncoder(model, 2, clouds_per_run=runs)(**batch(clouds))
        torch.testing.assert_close(other.feat, together.feat, atol=1e-5, rtol=0)
        for name in ("grid_coord", "inverse", "offset"):
            assert torch.equal(getattr(other, name), getattr(together, name)), name


def test_clouds_per_run_is_checked(model, cloud):
    with pytest.raises(ValueError, match="at least 1"):
        ConcertoEncoder(model, clouds_per_run=0)
    for offset in ([1], [900, 400, len(cloud["coord"])]):
        with pytest.raises(ValueError, match="cumulative ends"):
            ConcertoEncoder(model, clouds_per_run=1)(**cloud | {"offset": torch.tensor(offset)})


def test_the_encoder_is_frozen(model):
    encoder = ConcertoEncoder(model.train())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
