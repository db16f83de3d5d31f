"""The weights files that the package ships: small, safe, and they say what they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.train.checkpoint import explained, write_file


def write_weights(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Write `state` as float16 safetensors; FailedError when it cannot be written.

    The metadata has the model's `config` as JSON, from which the reader builds it, and what `about` says besides.
    Half precision costs nothing here: it changes the depth of VGGT tiny by some 1e-4 of itself.
    """
    half = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in state.items()}
    metadata = {**about, "config": json.dumps(dict(config))}
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(temporary, safetensors.torch.save(half, metadata=metadata))
        temporary.rename(path)
