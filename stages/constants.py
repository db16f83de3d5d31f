"""Small constant tensors, made once a device: making one anew makes the host wait for a GPU."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """`values` [n] on `device`; the same tensor every time, so that nobody may write into it."""
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        return torch.tensor(values, dtype=dtype, device=device)
