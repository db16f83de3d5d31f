"""What a frozen language model says of instructions: its last hidden states, a token a row.

Shape legend: L tokens of an instruction, D channels.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_specs.shards import ModelRecord
from pipeline.config import RequestError, TextSection
from pipeline.extract.encoders.folder import ModelFolder, find_folder, first_of, random_record, random_seed
from pipeline.extract.encoders.loading import fill_random, load_strictly, quiet, read_config
from pipeline.store.language import ROLE

KEY = "text.weights"
WORDS = 1 << 15
"""Rows of the random encoder's embedding: few enough to draw at once, many enough that words seldom share one."""

WIDTH, LAYERS, HEADS = 128, 2, 4
"""Sizes of the random encoder."""

VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tokenizer.model",),
    ("spiece.model",),
)
"""Files that hold a tokenizer's vocabulary, any of them."""

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class TextWeights:
    """A text encoder found: a folder, or the seed of a random one."""

    record: ModelRecord
    folder: ModelFolder | None = None
    seed: int = 0


def find_text(section: TextSection) -> TextWeights:
    """The weights of a recipe's text encoder; RequestError with the alternatives when they cannot be had."""

    def find(spec: str) -> TextWeights:
        seed = random_seed(KEY, spec)
        if seed is not None:
            return TextWeights(record=random_record(ROLE, spec), seed=seed)
        folder = find_folder(ROLE, KEY, spec, section.revision)
        return TextWeights(record=folder.record, folder=folder)

    return first_of(KEY, section.weights, find)


class TextEncoder:
    """A frozen text encoder. Each instruction runs by itself, without padding: its tokens depend on nothing else.

    Args:
        model: gives `last_hidden_state` [1,L,D] for `input_ids` [1,L].
        tokenize: the tokens of a text, special ones of the model included, cut to the limit by `cut`.
        cut: as `tokenize`, but at most `limit` tokens.
        record, limit, device, dtype: of the manifest; the greatest number of tokens; where and in what it computes.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Tokenize,
        cut: Tokenize,
        *,
        record: ModelRecord,
        limit: int,
        device: torch.device,
        dtype: str = "float32",
    ) -> None:
        self.model = model.to(device)
        self.record, self.limit, self.device = record, limit, device
        self._tokenize, self._cut, self._dtype = tokenize, cut, dtype
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """The tokens f2 [L,D] of an instruction on the CPU, computed once.

        Raises:
            ValueError: they are not finite in float16.
        """
        known = self._known.get(text)
        if known is None:
            ids = torch.tensor([self._cut(text)], device=self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16"):
                out = self.model(input_ids=ids).last_hidden_state[0]
            known = out.half().cpu()
            if not bool(torch.isfinite(known).all()):
                raise ValueError(
                    f"the text encoder {self.record.name} gives values that are not finite in float16 for {text!r}; "
                    "expected magnitudes under 65504"
                )
            self._known[text] = known
        return known

    def forget(self) -> None:
        """Compute instructions anew from now on: for those who time it."""
        self._known.clear()

    def too_long(self, text: str) -> bool:
        """Whether an instruction has more tokens than count."""
        return len(self._tokenize(text)) > self.limit


def load_text(section: TextSection, weights: TextWeights, device: torch.device) -> TextEncoder:
    """Build and load a text encoder; RequestError when its files do not fit."""
    common: dict[str, Any] = {"record": weights.record, "device": device, "dtype": section.dtype}
    if weights.folder is None:
        return TextEncoder(
            _random_model(weights.seed), word_ids, lambda text: word_ids(text)[: section.tokens], limit=section.tokens,
            **common,
        )  # fmt: skip
    config = read_config(weights.folder)
    config = getattr(config, "text_config", config)  # of CLIP and SigLIP
    model = load_strictly(weights.folder, config)
    if config.is_encoder_decoder:
        model = model.get_encoder()  # type: ignore[operator]  # of T5
    limit = min(section.tokens, getattr(config, "max_position_embeddings", None) or section.tokens)
    tokenize, cut = _tokenizer(weights.folder, limit, config.vocab_size)
    return TextEncoder(model, tokenize, cut, limit=limit, **common)


def _tokenizer(folder: ModelFolder, limit: int, words: int) -> tuple[Tokenize, Tokenize]:
    from transformers import AutoTokenizer

    # transformers makes an empty tokenizer where it finds no vocabulary, and says nothing
    if not any(all((folder.path / name).is_file() for name in names) for names in VOCABULARIES):
        raise RequestError(
            f"{folder.path} holds no tokenizer ({', or '.join(' and '.join(names) for names in VOCABULARIES)}), which "
            f"{KEY} needs: copy the whole repository."
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"The tokenizer in {folder.path} cannot be loaded ({line}): copy the whole repository again for {KEY}."
        ) from None
    if len(tokenizer) > words:
        raise RequestError(
            f"The tokenizer in {folder.path} has {len(tokenizer)} tokens, the model's vocabulary {words}: they are not "
            f"of one model; copy the whole repository again for {KEY}."
        )
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), 0)

    def tokenize(text: str) -> list[int]:
        with quiet():  # it warns of texts that are longer than its model's greatest length
            return list(tokenizer(text)["input_ids"]) or [end]

    def cut(text: str) -> list[int]:
        return list(tokenizer(text, truncation=True, max_length=limit)["input_ids"]) or [end]

    return tokenize, cut


def word_ids(text: str) -> list[int]:
    """Words and signs as hashes of 15 bits, in lower case; an empty text is the one token 0."""
    ids = []
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        digest = hashlib.sha256(word.encode()).digest()
        ids.append(1 + int.from_bytes(digest[:8], "little") % (WORDS - 1))
    return ids or [0]


def _random_model(seed: int) -> nn.Module:
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
    )
    with torch.random.fork_rng(devices=[]):  # its own initialisation, which is not kept
        model: nn.Module = Qwen3Model(config)
    return fill_random(model, seed)
