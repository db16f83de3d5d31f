"""Random weights for a VGGT whose geometry is plausible: for tests, demonstrations and measurements of speed.

Ordinary initialisation leaves a field of view around 0, which the ReLU of the camera head turns into no camera at
all. Here the last layers are scaled so that cameras and depths stay in a sensible range whatever the image is.
"""

import math
import zlib

import torch
from torch import Tensor, nn

from stages.vggt.camera_head import NUM_ROUNDS
from stages.vggt.model import VGGT

FIELD_OF_VIEW = math.radians(60.0)

# Residual branches start small, so that depth does not change the scale of the tokens.
_LAYER_SCALE = 0.1
_TOKEN_STD = 0.02
# The camera head adds up to `NUM_ROUNDS` changes of this size: radians of view, and translation in scene units.
_POSE_STD = 0.01
# Depth is the exponential of the raw map, which this keeps well within ±log 2.
_DENSE_GAIN = 0.3
_DENSE_OUTPUT = "output_conv2.2.weight"


def init_random(model: VGGT, seed: int) -> None:
    """Draw all parameters of `model` in place, float32; parameters on the meta device are allocated on the CPU first.

    Each parameter has a generator of its own, seeded by `seed` and its name: neither order, nor device, nor the
    global random state matter. Draws are uniform, which torch computes from random bits without rounding that
    differs between processors. The field of view comes out near 60 degrees, the translation near 0, the rotation
    near the identity and the depth around 1.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            constant = _constant(name, parameter)
            if constant is not None:
                parameter.copy_(constant)
                continue
            limit = math.sqrt(3.0) * _std(name, parameter)  # a uniform draw from ±a has deviation a / √3
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            on_cpu = parameter.device.type == "cpu" and parameter.dtype == torch.float32
            draw = parameter if on_cpu else torch.empty(parameter.shape, dtype=torch.float32)
            draw.uniform_(-limit, limit, generator=generator)
            if ".scratch." in name:
                # Inputs are positive (ReLU): weights without a sum give variation over the image, not an offset of it.
                draw -= draw.mean(dim=(1, 2, 3), keepdim=True)
            if not on_cpu:
                parameter.copy_(draw)


def _constant(name: str, parameter: nn.Parameter) -> Tensor | None:
    """What a parameter that is not drawn starts from, broadcastable to it."""
    if name == "camera_head.pose_branch.fc2.bias":
        # translation 0, quaternion (0, 0, 0, 1), field of view: each round adds its share
        return torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, FIELD_OF_VIEW, FIELD_OF_VIEW]) / NUM_ROUNDS
    if name.endswith("gamma"):
        return torch.tensor(_LAYER_SCALE)
    if name.endswith(("bias", "mask_token", "empty_pose_tokens")):
        return torch.tensor(0.0)
    if parameter.ndim == 1:
        return torch.tensor(1.0)  # scales of norms
    return None


def _std(name: str, parameter: nn.Parameter) -> float:
    """Standard deviation of a weight: 1 / √(inputs of an output), and smaller where the geometry is made."""
    if name.endswith(("_token", "_tokens", "pos_embed")):
        return _TOKEN_STD
    if name.endswith(("resize_layers.0.weight", "resize_layers.1.weight")):
        return 1.0 / math.sqrt(parameter.shape[0])  # transposed: every output pixel has one input pixel
    std = 1.0 / math.sqrt(math.prod(parameter.shape[1:]))
    if name == "camera_head.pose_branch.fc2.weight":
        return _POSE_STD * std
    if name.endswith(_DENSE_OUTPUT):
        return _DENSE_GAIN * std
    return std
