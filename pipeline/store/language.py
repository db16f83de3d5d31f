"""`language.safetensors`: what a frozen text encoder says of each distinct instruction of a store, one copy of each.

Shape legend: R distinct instructions, B those asked for, L tokens of the longest, D channels.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_specs.shards import LANGUAGE, ModelRecord
from pipeline.foreign import parse_json, shortened, unreadable
from pipeline.store.errors import ShardError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

    from data_specs.batches import LanguageBatch
    from pipeline.store.layout import StoreLayout

ROLE = "text"
"""The role of a text encoder among the models of a manifest."""

_KEY = "cla_language"

_MAX_HEADER = 100 << 20
"""Bytes of a header: what safetensors reads itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageTable:
    """Frozen text encoder outputs.

    Attributes:
        texts: the R instructions, sorted.
        feat: f2 [R,L,D], zero past the end of an instruction. mask: bool [R,L], true for its tokens, at least one.
        model: the encoder. limit: the greatest number of tokens that it was given.
        truncated: the instructions that were longer, of which only the first `limit` tokens count.
    """

    texts: tuple[str, ...]
    feat: "Tensor"
    mask: "Tensor"
    model: ModelRecord
    limit: int
    truncated: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, texts: Sequence[str]) -> "LanguageBatch":
        """The rows of these instructions, padded to the longest of them.

        Raises:
            ValueError: no instructions, or one that the store does not hold.
        """
        from data_specs.batches import LanguageBatch

        if not texts:
            raise ValueError("a batch of no instructions has no language: give at least one")
        row = {text: i for i, text in enumerate(self.texts)}
        missing = [text for text in texts if text not in row]
        if missing:
            raise ValueError(
                f"the store has no instruction {missing[0]!r}: it holds {len(row)}, for example "
                f"{', '.join(repr(text) for text in self.texts[:3])}; others go through the encoder live"
            )
        rows = [row[text] for text in texts]
        mask = self.mask[rows]
        longest = int(mask.sum(1).max())
        return LanguageBatch(feat=self.feat[rows, :longest].clone(), mask=mask[:, :longest].clone())

    @classmethod
    def of(
        cls, encoded: Mapping[str, "Tensor"], *, model: ModelRecord, limit: int, truncated: Iterable[str] = ()
    ) -> "LanguageTable":
        """The table of instructions and their tokens [L_r,D]."""
        import torch

        assert encoded, "a table of no instructions"
        texts = tuple(sorted(encoded))
        lengths = torch.tensor([len(encoded[text]) for text in texts])
        feat = torch.zeros(len(texts), int(lengths.max()), encoded[texts[0]].shape[1], dtype=torch.float16)
        for i, text in enumerate(texts):
            feat[i, : lengths[i]] = encoded[text].half()
        return cls(
            texts=texts,
            feat=feat,
            mask=torch.arange(feat.shape[1]) < lengths[:, None],
            model=model,
            limit=limit,
            truncated=tuple(sorted(truncated)),
        )

    def encoded(self) -> dict[str, "Tensor"]:
        """The tokens f2 [L_r,D] of each instruction."""
        return {text: self.feat[i, self.mask[i]] for i, text in enumerate(self.texts)}

    def to_bytes(self) -> bytes:
        """The file: the same bytes for the same table."""
        from safetensors.torch import save

        meta = {
            "texts": self.texts,
            "truncated": self.truncated,
            "limit": self.limit,
            "model": self.model.model_dump(mode="json"),
            "sha256": _digest(self.feat, self.mask),
        }
        # one entry: the order in which several are written is not defined
        return bytes(save({"feat": self.feat, "mask": self.mask}, metadata={_KEY: json.dumps(meta)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> "LanguageTable":
        """The table of a file. ShardError when it is damaged or not one of ours."""
        from pydantic import ValidationError
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            meta = _metadata(data)
            tensors = load(data)
            if not all(isinstance(text, str) for text in (*meta["texts"], *meta["truncated"])):
                raise ValueError("instructions that are no text")
            table = cls(
                texts=tuple(meta["texts"]),
                feat=tensors["feat"],
                mask=tensors["mask"],
                model=ModelRecord.model_validate(meta["model"]),
                limit=int(meta["limit"]),
                truncated=tuple(meta["truncated"]),
            )
            sha256 = str(meta["sha256"])
        except unreadable(SafetensorError, ValidationError) as error:
            raise ShardError(LANGUAGE, None, f"cannot be read ({shortened(error)})") from error
        problem = next(_problems(table, sha256), None)
        if problem:
            raise ShardError(LANGUAGE, None, problem)
        return table


def _metadata(data: bytes) -> dict[str, Any]:
    """What the header of a safetensors file says beside its tensors (8 bytes of length, then JSON)."""
    size = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + size], limit=_MAX_HEADER)
    values: dict[str, Any] = parse_json(header["__metadata__"][_KEY], limit=_MAX_HEADER)
    return values


def _digest(feat: "Tensor", mask: "Tensor") -> str:
    digest = hashlib.sha256()
    for tensor in (feat, mask):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _problems(table: LanguageTable, sha256: str) -> Iterator[str]:
    """What makes a table wrong in itself."""
    import torch

    rows = len(table.texts)
    if table.feat.dtype is not torch.float16 or table.feat.ndim != 3 or len(table.feat) != rows or not rows:
        yield f"feat is {table.feat.dtype} {list(table.feat.shape)}, expected float16 [{rows}, tokens, channels]"
        return
    if table.mask.dtype is not torch.bool or table.mask.shape != table.feat.shape[:2]:
        yield f"mask is {table.mask.dtype} {list(table.mask.shape)}, expected bool {list(table.feat.shape[:2])}"
        return
    if list(table.texts) != sorted(set(table.texts)):
        yield "its instructions are not sorted, each once"
    lengths = table.mask.sum(1)
    if not bool((table.mask == (torch.arange(table.mask.shape[1]) < lengths[:, None])).all()) or lengths.min() < 1:
        yield "an instruction has no tokens, or a gap between them"
    if not bool(torch.isfinite(table.feat).all()):
        yield "feat has values that are not finite"
    if _digest(table.feat, table.mask) != sha256:
        yield "its values are not those that were written (SHA-256)"


def text_model(layout: "StoreLayout") -> ModelRecord | None:
    """The text encoder of a store's manifest, or None where its recipe has none."""
    return next((model for model in layout.manifest.models if model.role == ROLE), None)


def read_language(layout: "StoreLayout") -> LanguageTable | None:
    """The table of a store; None where its recipe has no text encoder, or the store no clips.

    Raises:
        StoreError: the file is missing, damaged, or of another encoder.
    """
    model = text_model(layout)
    if model is None:
        return None
    try:
        table = LanguageTable.from_bytes(layout.files.read_bytes(LANGUAGE))
    except FileNotFoundError:
        if not any(sidecar.rows for sidecar in layout.sidecars()):
            return None
        raise StoreError(
            f"{layout.url} has no {LANGUAGE}: the run that wrote the store has not ended. Go on with it by --resume, "
            "or `cla merge` its partitions."
        ) from None
    if table.model != model:
        raise ShardError(
            LANGUAGE, None, f"is of {table.model.name}, the manifest names {model.name}; --resume mends it"
        )
    return table


def write_language(layout: "StoreLayout", table: LanguageTable) -> None:
    """Write the table of a store."""
    layout.files.write_bytes(LANGUAGE, table.to_bytes())


def language_problems(layout: "StoreLayout", texts: set[str]) -> Iterator[str]:
    """What is wrong with the file, given the instructions of the store's clips."""
    if text_model(layout) is None:
        if layout.files.exists(LANGUAGE):
            yield "is there, but the manifest names no text encoder"
        return
    if not texts:
        return
    try:
        table = read_language(layout)
    except ShardError as error:
        yield error.problem
        return
    except StoreError:
        yield "is missing; --resume or `cla merge` writes it"
        return
    assert table is not None
    if lacking := sorted(texts - set(table.texts)):
        yield f"lacks {len(lacking)} instructions of the clips, for example {lacking[0]!r}; --resume adds them"
    if surplus := sorted(set(table.texts) - texts):
        yield f"has {len(surplus)} instructions of no clip, for example {surplus[0]!r}"
