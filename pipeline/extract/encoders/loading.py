"""Models of `transformers`, loaded strictly and in silence, or filled from a seed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.config import RequestError
from pipeline.extract.encoders.folder import ModelFolder

UNUSED = ("pooler", "head")
"""Parts over the tokens that a checkpoint may lack: nothing here reads them."""


@contextmanager
def quiet() -> Iterator[None]:
    """`transformers` without progress bars and reports: what matters of them is checked and said in sentences."""
    from transformers.utils import logging as theirs

    logging: Any = theirs  # some of it is not typed
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: ModelFolder) -> Any:
    """The config of a model's folder. RequestError for an architecture that is not known, or a damaged file."""
    from transformers import AutoConfig

    folder.json("config.json")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder.path}/config.json is of no model that transformers knows here ({_first_line(error)}). "
            f"{_instead(folder)}"
        ) from None


def load_strictly(folder: ModelFolder, config: Any) -> nn.Module:
    """The model of `config` with the weights of its folder, float32, frozen. RequestError unless they fit."""
    from safetensors import SafetensorError
    from transformers import MODEL_MAPPING

    build: Any = MODEL_MAPPING.get(type(config), None)
    if build is None:
        raise RequestError(f"{folder.path} holds a {config.model_type}, which has no base model. {_instead(folder)}")
    config.dtype = torch.float32
    try:
        with quiet():
            model, report = build.from_pretrained(
                folder.path, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RequestError(
            f"{folder.record.name} cannot be loaded ({_first_line(error)}). {_instead(folder)}"
        ) from None
    missing = sorted(name for name in report["missing_keys"] if not set(name.split(".")) & set(UNUSED))
    misshapen = sorted(str(key) for key in report["mismatched_keys"])
    if missing or misshapen:
        what = f"{len(missing)} missing, first {missing[0]!r}" if missing else f"of another shape: {misshapen[0]}"
        raise RequestError(f"{folder.record.name} does not fit a {config.model_type}: {what}. {_instead(folder)}")
    frozen: nn.Module = model.float().eval().requires_grad_(False)
    return frozen


def fill_random(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter from `seed` alone, whatever a library's version would: frozen, eval mode.

    Matrices get a standard deviation of 1 / sqrt(fan-in), embeddings of 1, scales are 1 and biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if value.ndim < 2:
                value.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 1.0 if "embed" in name and value.ndim != 4 else 1 / math.sqrt(math.prod(value.shape[1:]))
            value.copy_(torch.randn(value.shape, generator=generator) * deviation)
    return model.float().eval().requires_grad_(False)


def _instead(folder: ModelFolder) -> str:
    return f"Name another folder or repository in {folder.key}, or random:0 for a model that is not trained."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
