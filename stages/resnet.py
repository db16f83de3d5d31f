"""A residual network over pictures of any size (He et al., CVPR 2016), built from `transformers`.

The default is ResNet-18 with the parameter names of `microsoft/resnet-18`. Its batch norms are frozen: with 8 pictures
a batch, statistics of the batch are worse than those of ImageNet. A network that starts from random weights has no
statistics worth freezing: `norm="group"` normalises each picture by itself (Wu and He, ECCV 2018).

Shape legend: B pictures, H W their sides, h w sides of the feature map, C channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours in [0, 1]."""

_NOT_USED = ("classifier.", "num_batches_tracked")
"""What a checkpoint has beside the network: the classes of ImageNet, and how often its batch norms were updated."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes of `ResNet`.

    Attributes:
        stem, widths, depths: channels of the stem and of each stage, and blocks a stage. A feature map has a cell for
            every 4 pixels along a side after the first stage, and half as many after each further one.
        norm: `frozen_batch` or `group` (16 channels a group).
        size: (height, width) to which pictures are resized first; None leaves each camera its own resolution.
    """

    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    norm: Literal["frozen_batch", "group"] = "frozen_batch"
    size: tuple[int, int] | None = None


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine map are buffers: nothing changes them but loading a checkpoint."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape and dtype."""
        gain = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * gain
        return x_BCHW * gain.to(x_BCHW.dtype)[:, None, None] + shift.to(x_BCHW.dtype)[:, None, None]


class ResNet(nn.Module):
    """Pictures u1 [B,H,W,3] → feature maps [B,h,w,C]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        if (
            not config.widths
            or len(config.widths) != len(config.depths)
            or config.norm not in ("frozen_batch", "group")
        ):
            raise ValueError(
                f"a residual network needs as many widths as depths and norm=frozen_batch or group, got {config}"
            )
        self.config = config
        self.channels = config.widths[-1]
        self.net = _residual_network(config)
        for name, value in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_DEVIATION)):
            self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, pictures_BHW3: Tensor) -> Tensor:
        """[B,h,w,C]."""
        x_BHW3 = pictures_BHW3.float().div(255).sub(self.mean).div(self.deviation)
        x_B3HW = x_BHW3.permute(0, 3, 1, 2)  # channels last in memory, which convolutions like
        size = self.config.size
        if size is not None and x_B3HW.shape[-2:] != size:
            x_B3HW = F.interpolate(x_B3HW, size, mode="bilinear", align_corners=False, antialias=True)
        out: Tensor = self.net(pixel_values=x_B3HW).last_hidden_state
        return out.permute(0, 2, 3, 1)

    @torch.no_grad()
    def load_pretrained(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint with the names of `microsoft/resnet-18`, with or without its classifier.

        ValueError when they are those of another network, or the norms are not frozen batch norms.
        """
        if self.config.norm != "frozen_batch":
            raise ValueError("weights of ImageNet belong to batch norms: load them with norm=frozen_batch")
        found = {
            name.removeprefix("resnet."): value
            for name, value in state.items()
            if not name.startswith(_NOT_USED[0]) and not name.endswith(_NOT_USED[1])
        }
        expected = self.net.state_dict()
        lists = {"missing": expected.keys() - found.keys(), "unknown": found.keys() - expected.keys()}
        if any(lists.values()):
            trouble = " and ".join(f"{len(names)} {what} ({min(names)})" for what, names in lists.items() if names)
            raise ValueError(
                f"these are no weights of this residual network, {trouble}: expected those of microsoft/resnet-18"
            )
        wrong = [name for name, value in found.items() if value.shape != expected[name].shape]
        if wrong:
            raise ValueError(
                f"{wrong[0]} has shape {list(found[wrong[0]].shape)} and the network {list(expected[wrong[0]].shape)}: "
                "these are weights of another width"
            )
        self.net.load_state_dict(found)


def _residual_network(config: ResNetConfig) -> nn.Module:
    """The network of `transformers` with random weights, its batch norms replaced."""
    import transformers

    net: Any = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=config.stem,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type="basic",
        )
    )
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _norm(config, child.num_features))
    assert isinstance(net, nn.Module)
    return net


def _norm(config: ResNetConfig, channels: int) -> nn.Module:
    if config.norm == "frozen_batch":
        return FrozenBatchNorm(channels)
    return nn.GroupNorm(max(1, channels // 16), channels)
