"""Datasets of the Hub as local folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast


def download(repo: str, revision: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """The files of a Hub dataset that match `patterns`, in the cache of huggingface_hub: their folder and the commit.

    What the cache has is not downloaded again. ValueError, with what to do without a network, where that fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the HTTP library's own error, whichever one huggingface_hub is built on, is the base of its errors
    failures: tuple[type[Exception], ...] = (*cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__), OSError)
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise ValueError(f"Option repo={repo!r} of dataset 'lerobot' is no OWNER/NAME of the Hub ({error}).") from None
    except failures as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"Dataset {repo} at revision {revision} cannot be downloaded ({what}). Without a network: on a machine that"
            f" has one run `hf download {repo} --repo-type dataset --revision {revision} --local-dir DIR`, copy DIR and"
            " give --root DIR."
        ) from None
    return folder, folder.name
