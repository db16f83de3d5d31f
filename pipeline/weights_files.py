"""Files of weights: found here or on the Hub, and read. Nothing is ever unpickled."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import RequestError
from pipeline.foreign import UNREADABLE, parse_json, shortened, unreadable


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, the name to record for it, and its commit on the Hub (empty for a local file)."""

    path: Path
    name: str
    revision: str = ""


def find_file(key: str, spec: str, revision: str, names: Sequence[str]) -> WeightsFile:
    """The file of weights that a recipe's `key` (`vggt.weights`) describes.

    Args:
        key: what the user sets, for the sentences.
        spec: a file; a folder that holds one of `names`; `owner/repository` or `owner/repository/file` on the Hub.
        revision: branch, tag or commit on the Hub; the commit it stands for is recorded.
        names: under what names a repository or folder may hold it, in the order of preference.

    Raises RequestError with the offline alternative when it cannot be had.
    """
    local = Path(spec).expanduser()
    if local.is_dir():
        for file_name in names:
            if (local / file_name).is_file():
                return WeightsFile(local / file_name, str(local / file_name))
        raise RequestError(f"{local} holds none of {', '.join(names)}: name the file itself in {key}=.")
    if local.is_file():
        return WeightsFile(local, str(local))
    parts = spec.split("/")
    looks_local = spec.startswith(("/", ".", "~")) or len(parts) < 2
    if looks_local:
        raise RequestError(
            f"{key}={spec} is not a file or folder here, nor owner/repository on the Hub. "
            f"{key}=random:0 runs without weights, and says so in everything it writes."
        )
    wanted = ("/".join(parts[2:]),) if len(parts) > 2 else tuple(names)
    return _download(key, "/".join(parts[:2]), wanted, revision)


def _download(key: str, repository: str, names: tuple[str, ...], revision: str) -> WeightsFile:
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
        f"Cannot get {repository} ({revision}) for {key}: {trouble}. Without a network: download {' or '.join(names)} "
        f"elsewhere and give {key}=/path/to/file; or run with {key}=random:0, which is no trained "
        "model and is marked as such in everything it writes."
    )


def _from_hub(path: Path, repository: str, name: str, revision: str) -> WeightsFile:
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else revision
    return WeightsFile(path, f"{repository}/{name}", commit)


def read_file(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """The tensors of a checkpoint by name, and the config that it carries, if any. RequestError when it is neither."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        raise RequestError(
            f"{path} is not a checkpoint of tensors: {shortened(error)} "
            "It was read with weights_only=True, which runs no code from the file; download it again, or convert it to "
            "safetensors where you trust it."
        ) from None
    config = None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content, config = content["state_dict"], content.get("config")
    if isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return content, config if isinstance(config, dict) else None
    raise RequestError(f"{path} holds neither tensors by name nor a 'state_dict' of them; expected one of the two.")


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """The tensors, and the config that files of `cla train tiny-frozen` carry in their metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            metadata = file.metadata() or {}
        config = parse_json(metadata["config"]) if "config" in metadata else None
    except unreadable(SafetensorError) as error:
        raise RequestError(
            f"{path} is not a readable safetensors file: {shortened(error)}. Download it again."
        ) from None
    return state, config if isinstance(config, dict) else None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
