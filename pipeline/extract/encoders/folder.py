"""A model as `transformers` saves it: a folder here, or a repository on the Hub, with config and safetensors."""

import hashlib
import itertools
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_specs.shards import ModelRecord
from pipeline.config import RequestError
from pipeline.foreign import BadJson, inside, read_json, shortened
from pipeline.weights_files import sha256_of

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is downloaded of a repository: no pickles."""

LICENCES = {
    "Qwen/Qwen3": "Apache-2.0",
    "facebook/dinov2": "Apache-2.0",
    "google/siglip": "Apache-2.0",
    "openai/clip": "MIT",
}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder with `config.json` and safetensors; `key` is what the user set to get it."""

    path: Path
    key: str
    record: ModelRecord

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files. RequestError when it is missing or none."""
        try:
            values = read_json(self.path / name)
        except FileNotFoundError:
            raise RequestError(
                f"{self.path} lacks {name}, which {self.key} needs: copy the whole repository."
            ) from None
        except (OSError, BadJson) as error:
            raise RequestError(f"{self.path / name} {shortened(error)}: copy the repository again.") from None
        if not isinstance(values, dict):
            raise RequestError(f"{self.path / name} holds no JSON object: copy the repository again.")
        return values


def first_of(key: str, spec: str, find: Callable[[str], T]) -> T:
    """What `find` gives for the first of the alternatives `A|B|C` of a recipe's `key` that can be had.

    Says on stderr which it passed over and why. RequestError of the last when none can be had.
    """
    alternatives = [alternative.strip() for alternative in spec.split("|")]
    for this, following in itertools.pairwise(alternatives):
        try:
            return find(this)
        except RequestError as error:
            sys.stderr.write(f"warning: {key}: {error} The recipe names {following} instead.\n")
    return find(alternatives[-1])


def random_seed(key: str, spec: str) -> int | None:
    """The seed of `random:SEED`, None for anything else. RequestError for a seed that is none."""
    if not spec.startswith("random"):
        return None
    match = re.fullmatch(r"random:(\d+)", spec)
    if match is None:
        raise RequestError(f"{key}={spec} does not say which: expected random:SEED, for example random:0.")
    return int(match[1])


def find_folder(role: str, key: str, spec: str, revision: str) -> ModelFolder:
    """The folder of a pretrained model.

    Args:
        role: of the model in a manifest.
        key: what the user sets, for the sentences.
        spec: a folder, or `owner/repository` on the Hub: from the local cache, else by download.
        revision: branch, tag or commit on the Hub; the commit it stands for is recorded.

    Raises RequestError with the alternatives when it cannot be had.
    """
    local = Path(spec).expanduser()
    if local.is_dir():
        if problem := _incomplete(local):
            raise RequestError(f"{local} {problem}: {key} needs a folder that save_pretrained of transformers writes.")
        return ModelFolder(path=local, key=key, record=_record(role, str(local), "", local))
    if spec.startswith(("/", ".", "~")) or spec.count("/") != 1:
        raise RequestError(f"{key}={spec} is neither a folder here nor owner/repository on the Hub. {_ways_out(key)}")
    path = _from_hub(key, spec, revision)
    commit = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else revision
    return ModelFolder(path=path, key=key, record=_record(role, spec, commit, path))


def _from_hub(key: str, repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the sentence below says what its retries came to
    trouble = "it is not in the local cache and the Hub cannot be reached"
    for only_local in (True, False):
        try:
            path = Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=list(FILES), local_files_only=only_local
                )
            )
        except LocalEntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            trouble = str(error).splitlines()[0]
            continue
        problem = _incomplete(path)
        if problem is None:
            return path
        trouble = f"what is there of it {problem}"
    raise RequestError(f"Cannot get {repository} ({revision}) for {key}: {trouble}. {_ways_out(key)}")


def _ways_out(key: str) -> str:
    setting = key if key != "vision.towers" else "vision.towers=NAME"
    return (
        f"Without a network: download the repository elsewhere and give {setting}=/path/to/folder; or name another "
        f"repository; or run with {setting}=random:0, which is no trained model and is marked as such in everything "
        "it writes."
    )


def _incomplete(folder: Path) -> str | None:
    """What lacks of a model's folder, or None."""
    if not (folder / CONFIG).is_file():
        return f"holds no {CONFIG}"
    if (folder / INDEX).is_file():
        try:
            missing = [name for name in _indexed(folder) if not (folder / name).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"has a damaged {INDEX} ({shortened(error)})"
        return f"lacks {missing[0]}" if missing else None
    return None if any(folder.glob("*.safetensors")) else "holds no .safetensors (nothing else is read)"


def _indexed(folder: Path) -> list[str]:
    """Names of the files of weights that the index lists, all in the folder; none where there is no index.

    Raises what a damaged index comes to: OSError, ValueError, KeyError, TypeError, AttributeError.
    """
    if not (folder / INDEX).is_file():
        return []
    names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    for name in names:
        inside(folder, name)
    return names


def _record(role: str, name: str, commit: str, folder: Path) -> ModelRecord:
    return ModelRecord(
        role=role,
        name=name,
        revision=commit,
        sha256=_sha256(folder),
        random=False,
        licence=next((text for start, text in LICENCES.items() if name.startswith(start)), "unknown"),
    )


def _sha256(folder: Path) -> str:
    """Of the one file of weights, or of the names and SHA-256 of several, as `sha256sum *.safetensors` prints them."""
    names = _indexed(folder) or sorted(path.name for path in folder.glob("*.safetensors"))
    if len(names) == 1:
        return sha256_of(folder / names[0])
    lines = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def random_record(role: str, spec: str) -> ModelRecord:
    """The record of a model with random weights."""
    return ModelRecord(
        role=role, name=spec, revision="", sha256="", random=True, licence="none: random weights, not a trained model"
    )
