"""The parts of a policy and how many parameters each has: the trained ones, and the frozen ones behind its columns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from stages.layers import parameters_of

FROZEN_PARAMETERS: Mapping[str, int] = MappingProxyType(
    {
        "Qwen/Qwen3-0.6B-Base": 596_049_920,
        "sentence-transformers/all-MiniLM-L6-v2": 22_713_216,
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": 63_165_952,
        "facebook/dinov2-base": 86_580_480,
        "facebook/VGGT-1B": 909_112_320,
        "Pointcept/Concerto/concerto_base.pth": 108_461_376,
        "builtin:concerto_tiny": 1_266_896,
        "builtin:vggt_tiny": 954_528,
    }
)
"""Of the released models and ours, what runs for a store: of VGGT its aggregator, without the heads; of CLIP its text
encoder."""

_BEHIND = {
    "language": "Qwen/Qwen3-0.6B-Base",
    "tokens": "Pointcept/Concerto/concerto_base.pth",
    "vision/dinov2": "facebook/dinov2-base",
    "vision/vggt": "facebook/VGGT-1B",
}
"""The frozen model that a column comes from, unless the store says otherwise."""

_OF_PARTS = ("vision",)
"""Modules whose children are parts of their own."""


@dataclass(frozen=True, kw_only=True)
class PartRow:
    """A part of a policy: its trained parameters, or those of a frozen model (None where its size is not known)."""

    part: str
    trained: int = 0
    frozen: int | None = 0
    note: str = ""


def parameter_table(model: nn.Module, weights: Mapping[str, str] = MappingProxyType({})) -> list[PartRow]:
    """A policy's parts in its own order, the frozen models that its columns come from, and the sum as the last row.

    `weights` names the frozen model of a column, as in the store's manifest, where it is not the usual one. A model
    may also hold frozen parameters itself; they are counted as such.
    """
    rows = [PartRow(part=name, trained=n, frozen=held) for name, n, held in _parts(model) if n or held]
    for column in getattr(model, "columns", ()):
        if column in _BEHIND or column in weights or column.startswith("vision/"):
            name = weights.get(column, _BEHIND.get(column, "another encoder"))
            rows.append(PartRow(part=column, frozen=FROZEN_PARAMETERS.get(name), note=f"frozen: {name}, cached"))
    trained = sum(row.trained for row in rows)
    assert trained == parameters_of(model), "every parameter belongs to one part"
    unknown = [row.part for row in rows if row.frozen is None]
    total = PartRow(
        part="total",
        trained=trained,
        frozen=sum(row.frozen or 0 for row in rows),
        note=f"without {', '.join(unknown)}, whose size is not known" if unknown else "",
    )
    return [*rows, total]


def _parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, trained and frozen parameters of every part."""
    for name, parameter in model.named_parameters(recurse=False):
        yield prefix + name, parameters_of(parameter), 0 if parameter.requires_grad else parameter.numel()
    for name, child in model.named_children():
        if not prefix and name in _OF_PARTS:
            yield from _parts(child, f"{name}.")
        else:
            trained = parameters_of(child)
            yield prefix + name, trained, sum(p.numel() for p in child.parameters()) - trained
