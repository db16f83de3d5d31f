"""Equality of batches, to the bit."""

from dataclasses import fields
from typing import Any

import torch

from data_specs.batches import Batch


def assert_equal(one: Any, other: Any, name: str = "") -> None:
    assert type(one) is type(other), name
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        assert one.numpy().tobytes() == other.numpy().tobytes(), name
    elif isinstance(one, Batch):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name), f"{name}.{field.name}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}.{key}")
    else:
        assert one == other, name
