"""Weights for the frozen models: from this package, from the Hub, from a file, or random when asked for by name.

Nothing is ever unpickled: safetensors, or `torch.load(weights_only=True)`. Loading is strict.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from data_specs.shards import ModelRecord
from pipeline.config import RequestError

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
    path, name, commit = _locate(role, spec, revision)
    state, config = _read(path)
    if config is None and role == "concerto" and path.suffix == ".safetensors":
        config = _config_beside(path)
    licence = next((text for start, text in LICENCES.items() if spec.startswith(start)), "unknown: a local file")
    if spec.startswith("facebook/VGGT-1B-Commercial"):
        licence = LICENCES["facebook/VGGT-1B-Commercial"]
    record = ModelRecord(role=role, name=name, revision=commit, sha256=_sha256(path), random=False, licence=licence)
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
    state, config = _read(path)
    record = ModelRecord(
        role=role,
        name=f"builtin:{path.stem}",
        revision="",
        sha256=_sha256(path),
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


def _locate(role: str, spec: str, revision: str) -> tuple[Path, str, str]:
    local = Path(spec).expanduser()
    if local.is_dir():
        for file_name in FILE_NAMES:
            if (local / file_name).is_file():
                return local / file_name, str(local / file_name), ""
        raise RequestError(f"{local} holds none of {', '.join(FILE_NAMES)}: name the file itself in {role}.weights=.")
    if local.is_file():
        return local, str(local), ""
    parts = spec.split("/")
    looks_local = spec.startswith(("/", ".", "~")) or len(parts) < 2
    if looks_local:
        raise RequestError(
            f"{role}.weights={spec} is not a file or folder here, nor owner/repository on the Hub. "
            f"{role}.weights=random:0 runs without weights, and says so in everything it writes."
        )
    repository, names = "/".join(parts[:2]), ("/".join(parts[2:]),) if len(parts) > 2 else FILE_NAMES
    return _download(role, repository, names, revision)


def _download(role: str, repository: str, names: tuple[str, ...], revision: str) -> tuple[Path, str, str]:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for name in names:
        if isinstance(cached := try_to_load_from_cache(repository, name, revision=revision), str):
            return _from_hub(Path(cached), repository, name, revision)
    # it announces each retry; the sentence below says what they came to
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    trouble = f"the repository holds none of {', '.join(names)}"
    for name in names:
        try:
            return _from_hub(Path(hf_hub_download(repository, name, revision=revision)), repository, name, revision)
        except LocalEntryNotFoundError:
            trouble = "it is not in the local cache and the Hub cannot be reached"
            break
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            trouble = str(error).splitlines()[0]
            break
    raise RequestError(
        f"Cannot get {repository} ({revision}) for {role}: {trouble}. Without a network: download {' or '.join(names)} "
        f"elsewhere and give {role}.weights=/path/to/file; or run with {role}.weights=random:0, which is no trained "
        "model and is marked as such in everything it writes."
    )


def _from_hub(path: Path, repository: str, name: str, revision: str) -> tuple[Path, str, str]:
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else revision
    return path, f"{repository}/{name}", commit


def _read(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise RequestError(
            f"{path} is not a checkpoint of tensors: {str(error).splitlines()[0]} "
            "It was read with weights_only=True, which runs no code from the file; download it again, or convert it to "
            "safetensors where you trust it."
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return content["state_dict"], content.get("config")
    if isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values()):
        return content, None
    raise RequestError(f"{path} holds neither tensors by name nor a 'state_dict' of them; expected one of the two.")


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """The tensors, and the config that files of `cla train tiny-frozen` carry in their metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path} is not a readable safetensors file: {error}. Download it again.") from None
    return state, json.loads(metadata["config"]) if "config" in metadata else None


def _config_beside(path: Path) -> Mapping[str, Any] | None:
    """The `config.json` of a published Concerto in safetensors."""
    file = path.with_name("config.json")
    config: Mapping[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return config


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
