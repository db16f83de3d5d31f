"""List a dataset's folders with one `os.scandir` each and no `stat` a file: 220,847 videos are many."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Names in one folder, sorted, without hidden ones: plain `files`, `links` to what is no folder, and `folders`."""

    path: Path
    files: tuple[str, ...]
    links: tuple[str, ...]
    folders: tuple[str, ...]


def list_folder(path: Path, follow: bool = False) -> Folder:
    """The names in one folder; with `follow`, links to folders count as folders. ValueError if it cannot be listed."""
    files, links, below = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=follow):
                    below.append(entry.name)
                elif entry.is_symlink():
                    if not entry.is_dir():
                        links.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
    except OSError as error:
        raise ValueError(f"Cannot list the folder {path}: {error.strerror}.") from error
    return Folder(path=path, files=tuple(sorted(files)), links=tuple(sorted(links)), folders=tuple(sorted(below)))


def walk(root: Path, follow: bool = False) -> Iterator[Folder]:
    """`root` and every folder below it, in a fixed order.

    With `follow`, links to folders are entered too, each folder once. ValueError for a folder that cannot be listed.
    """
    seen: set[Path] = set()
    waiting = [root]
    while waiting:
        path = waiting.pop()
        if follow:
            real = path.resolve()
            if real in seen:
                continue
            seen.add(real)
        folder = list_folder(path, follow)
        waiting += [path / name for name in reversed(folder.folders)]
        yield folder


def suffix_of(name: str) -> str:
    """`.webm` of `Clip.WebM`."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  (called for every file of a dataset: no Path)
