"""Random weights that depend on nothing but a seed and the parameters' names."""

import zlib

import torch
from torch import nn


def init_random(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` in place from `seed` and its own name.

    Matrices and kernels are normal with variance 1 over the fan-in, so that differences between points survive the
    depth of the network; scales are 1 and biases 0. Every parameter has its own generator, on the CPU, so
    neither the global random state, nor the order of the parameters, nor the device matters.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                is_scale = name.endswith(("weight", "gamma"))
                parameter.fill_(1.0 if is_scale else 0.0)
                continue
            # torch's CPU generator reads the low 32 bits of its seed only, so both go through one checksum.
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            values.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            parameter.copy_(values)
