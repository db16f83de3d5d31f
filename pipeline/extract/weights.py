"""Weights for the frozen models: from this package, from the Hub, from a file, or random when asked for by name.

Nothing is ever unpickled: safetensors, or `torch.load(weights_only=True)`. Loading is strict.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data_specs.shards import ModelRecord
from pipeline.config import RequestError
from pipeline.foreign import BadJson, read_json, shortened
from pipeline.weights_files import find_file, read_file, sha256_of

LICENCES = {
    "facebook/VGGT-1B": "VGGT-1B: non-commercial",
    "facebook/VGGT-1B-Commercial": "VGGT-1B-Commercial: commercial use allowed, on the Hub's conditions",
    "Pointcept/Concerto": "CC-BY-NC 4.0: non-commercial",
}
FILE_NAMES = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")
"""Under what names a repository or folder may hold VGGT, in the order of preference."""

BUILTIN_FILES = {"vggt": "vggt_tiny.safetensors", "concerto": "concerto_tiny.safetensors"}
"""Small models of ours in `pipeline/weights`; the model card beside them says how they were trained."""

DROPPED_PREFIXES = {"vggt": ("track_head.",), "concerto": ()}
"""Parts of the released checkpoints that this project never runs."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights found: a checkpoint (`state`, its own `config` if it has one) or a `seed` for random ones."""

    record: ModelRecord
    state: Mapping[str, Tensor] | None = None
    config: Mapping[str, Any] | None = None
    seed: int | None = None


def find_weights(role: str, spec: str, revision: str) -> Weights:
    """Weights of `role` ("vggt" or "concerto") by their description.

    Args:
        role: which model they are for.
        spec: `builtin` (ours, in this package); `random:SEED`; a file; a folder with a file of `FILE_NAMES`;
            `owner/repository` or `owner/repository/file` on the Hub.
        revision: branch, tag or commit on the Hub; the commit it stands for is recorded.

    Raises RequestError with the offline alternative when they cannot be had.
    """
    if spec.startswith("random"):
        match = re.fullmatch(r"random:(\d+)", spec)
        if match is None:
            raise RequestError(f"{role}.weights={spec} does not say which: expected random:SEED, for example random:0.")
        seed = int(match[1])
        record = ModelRecord(
            role=role,
            name=spec,
            revision="",
            sha256="",
            random=True,
            licence="none: random weights, not a trained model",
        )
        return Weights(record=record, seed=seed)
    if spec == "builtin":
        return _builtin(role)
    file = find_file(f"{role}.weights", spec, revision, FILE_NAMES)
    path = file.path
    state, config = read_file(path)
    if config is None and role == "concerto" and path.suffix == ".safetensors":
        config = _config_beside(path)
    licence = next((text for start, text in LICENCES.items() if spec.startswith(start)), "unknown: a local file")
    if spec.startswith("facebook/VGGT-1B-Commercial"):
        licence = LICENCES["facebook/VGGT-1B-Commercial"]
    record = ModelRecord(
        role=role, name=file.name, revision=file.revision, sha256=sha256_of(path), random=False, licence=licence
    )
    return Weights(record=record, state=state, config=config)


def builtin_path(role: str) -> Path:
    """Where the package keeps its own weights of `role`, whether they are there or not."""
    return Path(str(resources.files("pipeline"))) / "weights" / BUILTIN_FILES[role]


def _builtin(role: str) -> Weights:
    path = builtin_path(role)
    if not path.is_file():
        raise RequestError(
            f"{role}.weights=builtin: this installation lacks {path}; install the package again, make it by "
            f"`cla train tiny-frozen`, or run with {role}.weights=random:0."
        )
    state, config = read_file(path)
    record = ModelRecord(
        role=role,
        name=f"builtin:{path.stem}",
        revision="",
        sha256=sha256_of(path),
        random=False,
        licence="Apache-2.0: trained by this project on its simulator",
    )
    return Weights(record=record, state=state, config=config)


def load_into(model: nn.Module, weights: Weights, role: str) -> None:
    """Load a checkpoint strictly; RequestError names the first missing, unexpected and misshapen keys."""
    assert weights.state is not None
    found = {k: v for k, v in weights.state.items() if not k.startswith(DROPPED_PREFIXES.get(role, ()))}
    expected = model.state_dict()
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    misshapen = [k for k in expected if k in found and found[k].shape != expected[k].shape]
    if missing or unexpected or misshapen:
        parts = []
        for title, keys in (("missing", missing), ("unexpected", unexpected)):
            if keys:
                parts.append(f"{len(keys)} {title}, first {keys[0]!r}")
        if misshapen:
            key = misshapen[0]
            parts.append(
                f"{len(misshapen)} of another shape, first {key!r}: {list(found[key].shape)} in the checkpoint, "
                f"{list(expected[key].shape)} in the model"
            )
        raise RequestError(
            f"{weights.record.name} does not fit {role}: {'; '.join(parts)}. "
            f"Expected a checkpoint of this architecture; choose another with {role}.model= or {role}.weights=."
        )
    model.load_state_dict(found, strict=True, assign=True)
    model.float()


def _config_beside(path: Path) -> Mapping[str, Any] | None:
    """The `config.json` of a published Concerto in safetensors."""
    file = path.with_name("config.json")
    if not file.is_file():
        return None
    try:
        config = read_json(file)
    except (BadJson, OSError) as error:
        raise RequestError(f"{file} {shortened(error)}: download it again.") from None
    if not isinstance(config, dict):
        raise RequestError(f"{file} holds no JSON object: download it again.")
    return config
