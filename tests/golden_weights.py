"""The weight rule of tests/golden/README.md: every parameter is filled from its own name."""

import zlib

import numpy as np
import torch
from torch import nn


def fill_from_names(module: nn.Module) -> None:
    """Fill every parameter of `module` in place, as the golden files were computed.

    Names are those of `named_parameters()`. One-dimensional (or scalar) weights and gammas lie around 1,
    other one-dimensional parameters around 0, and all others are standard normal over the root of the fan-in.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            shape = tuple(parameter.shape)
            x = np.asarray(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32))
            if x.ndim <= 1:
                is_scale = name.endswith(("weight", "gamma"))
                x = (1.0 if is_scale else 0.0) + np.float32(0.1) * x
            else:
                x = x / np.float32(np.sqrt(np.prod(shape[1:])))
            parameter.copy_(torch.from_numpy(np.asarray(x, dtype=np.float32)))
