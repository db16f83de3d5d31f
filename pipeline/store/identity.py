"""Whether two stores were made by the same frozen models."""

from collections.abc import Iterable
from dataclasses import dataclass

from data_specs.shards import ModelRecord


@dataclass(frozen=True, kw_only=True)
class DifferingModel:
    """The first role in which two sets of models differ, and how a person names each side's."""

    role: str
    ours: str
    theirs: str


def differing_model(ours: Iterable[ModelRecord], theirs: Iterable[ModelRecord]) -> DifferingModel | None:
    """The first role, by name, in which the models differ; None when they are the same.

    Where there is a hash it alone decides: files can be renamed.
    """
    mine, others = _identities(ours), _identities(theirs)
    for role in sorted({*mine, *others}):
        if mine.get(role) != others.get(role):
            return DifferingModel(role=role, ours=_named(mine.get(role)), theirs=_named(others.get(role)))
    return None


def _identities(models: Iterable[ModelRecord]) -> dict[str, tuple[str, str]]:
    """(name, SHA-256) of each model by role."""
    return {model.role: ("" if model.sha256 else model.name, model.sha256) for model in models}


def _named(identity: tuple[str, str] | None) -> str:
    if identity is None:
        return "none"
    name, digest = identity
    return f"SHA-256 {digest[:12]}…" if digest else name
