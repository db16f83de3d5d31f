from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.layers import parameters_of
from stages.resnet import IMAGENET_DEVIATION, IMAGENET_MEAN, FrozenBatchNorm, ResNet, ResNetConfig

SMALL = ResNetConfig(stem=8, widths=(8, 12), depths=(1, 2))


def _resnet(config: ResNetConfig = SMALL) -> ResNet:
    torch.manual_seed(0)
    return ResNet(config)


def _pictures(height: int = 48, width: int = 64) -> Tensor:
    return torch.randint(256, (2, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _released(config: ResNetConfig = SMALL) -> Any:
    """A classifier as `microsoft/resnet-18` was saved from, with batch norms that have seen data."""
    import transformers

    torch.manual_seed(1)
    sizes = {"embedding_size": config.stem, "hidden_sizes": list(config.widths), "depths": list(config.depths)}
    net: Any = transformers.ResNetForImageClassification(transformers.ResNetConfig(layer_type="basic", **sizes))
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "normalization" in name and value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.5)
    return net.eval()


def test_pretrained_weights_give_the_features_of_transformers() -> None:
    resnet, released = _resnet(), _released()
    state = released.state_dict()
    assert {"classifier.1.weight", "resnet.embedder.embedder.normalization.num_batches_tracked"} <= state.keys()
    resnet.load_pretrained(state)
    pixels = _pictures().permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_DEVIATION)[:, None, None]
    expected = released.resnet(pixel_values=pixels).last_hidden_state.permute(0, 2, 3, 1)
    features = resnet.train()(_pictures())
    assert features.shape == (2, 6, 8, 12)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    without_prefix = {name.removeprefix("resnet."): value for name, value in state.items()}
    other = _resnet(replace(SMALL))
    other.load_pretrained(without_prefix)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in resnet.state_dict().items())


def test_training_changes_no_statistics_and_no_affine_map_of_the_norms() -> None:
    resnet = _resnet().train()
    resnet.load_pretrained(_released().state_dict())
    frozen = {name: value.clone() for name, value in resnet.named_buffers()}
    assert not any("normalization" in name for name, _ in resnet.named_parameters())
    optimiser = torch.optim.SGD(resnet.parameters(), lr=0.1)
    before = {name: value.detach().clone() for name, value in resnet.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        resnet(_pictures()).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(value, frozen[name]) for name, value in resnet.named_buffers())
    assert sum("running" in name for name in frozen) == 2 * sum("weight" in name for name in frozen)
    assert all(not torch.equal(value, before[name]) for name, value in resnet.named_parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in resnet.modules())


def test_a_frozen_norm_is_batch_norm_at_inference() -> None:
    torch.manual_seed(0)
    norm, other = FrozenBatchNorm(5), torch.nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = torch.rand(5) + 0.5
            getattr(norm, name).copy_(value)
            getattr(other, name).copy_(value)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(norm(x), other(x))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_the_default_is_resnet_18() -> None:
    with torch.device("meta"):
        resnet = ResNet(ResNetConfig())
    norms = sum(value.numel() for name, value in resnet.named_buffers() if name.endswith(("weight", "bias")))
    assert parameters_of(resnet) == 11_166_912 and norms == 9_600  # 11,176,512 with them
    assert resnet.channels == 512


def test_each_camera_has_its_own_resolution_unless_a_size_is_given() -> None:
    assert _resnet()(_pictures(96, 64)).shape == (2, 12, 8, 12)
    resized = _resnet(replace(SMALL, size=(32, 32)))
    assert resized(_pictures(96, 64)).shape == resized(_pictures(32, 32)).shape == (2, 4, 4, 12)
    flat = torch.full((1, 96, 64, 3), 128, dtype=torch.uint8)
    torch.testing.assert_close(resized(flat), _resnet()(flat[:, :32, :32]), atol=1e-5, rtol=1e-5)


def test_group_norm_is_for_networks_without_pretrained_weights() -> None:
    group = _resnet(ResNetConfig(stem=16, widths=(16, 32), depths=(1, 1), norm="group"))
    names = [name for name, _ in group.named_parameters() if "normalization" in name]
    assert names and not any("normalization" in name for name, _ in group.named_buffers())
    group(_pictures()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in group.parameters())
    with pytest.raises(ValueError, match="norm=frozen_batch"):
        group.load_pretrained({})


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    resnet = _resnet()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    with pytest.raises(ValueError, match=r"network, 10 unknown \(encoder.stages.1.layers.2"):
        resnet.load_pretrained(_released(replace(SMALL, depths=(1, 3))).state_dict())
    with pytest.raises(ValueError, match=r"missing .* and 1 unknown"):
        resnet.load_pretrained({"fc.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="another width"):
        resnet.load_pretrained(_released(replace(SMALL, widths=(8, 16))).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    for wrong in ({"norm": "layer"}, {"widths": (8,)}, {"widths": (), "depths": ()}):
        with pytest.raises(ValueError, match="as many widths as depths"):
            ResNet(replace(SMALL, **wrong))  # type: ignore[arg-type]
