"""Batches of single moments put together as a store puts them together.

Shape legend: B moments of a batch, L tokens of an instruction.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from data_specs.batches import Batch, LanguageBatch

BatchT = TypeVar("BatchT", bound=Batch)


def join(batches: Sequence[BatchT]) -> BatchT:
    """The moments of all batches, in order, as `Store.batch` packs them; instructions are padded to the longest.

    ValueError unless all have the same columns.
    """
    if not batches:
        raise ValueError("a batch of no moments: give at least one")
    if isinstance(batches[0], LanguageBatch):
        return cast(BatchT, _join_language(cast(Sequence[LanguageBatch], batches)))
    names = [field.name for field in fields(batches[0])]
    return type(batches[0])(**{name: _join(name, [getattr(batch, name) for batch in batches]) for name in names})


def _join(name: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise ValueError(f"some moments have {name!r} and some have not: give batches of the same columns")
    if first is None:
        return None
    if isinstance(first, Batch):
        return join(values)
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(f"moments differ in {name!r}: {', '.join(sorted({*first} ^ {*values[-1]}))}")
        return {key: _join(key, [value[key] for value in values]) for key in first}
    assert isinstance(first, Tensor), (name, type(first))
    if name == "offset":
        lengths = torch.cat([value.diff() for value in values])
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.cat(list(values))


def _join_language(batches: Sequence[LanguageBatch]) -> LanguageBatch:
    longest = max(batch.mask.shape[1] for batch in batches)
    missing = [longest - batch.mask.shape[1] for batch in batches]
    return LanguageBatch(
        feat=torch.cat([F.pad(batch.feat, (0, 0, 0, more)) for batch, more in zip(batches, missing, strict=True)]),
        mask=torch.cat([F.pad(batch.mask, (0, more)) for batch, more in zip(batches, missing, strict=True)]),
    )
