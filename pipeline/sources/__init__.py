"""The datasets that `cla extract` reads, by name.

Adding a dataset is one file and one line:

1. Write `pipeline/sources/NAME.py` with a class that follows `pipeline.sources.base.Source`: a class attribute `spec`,
   a constructor `(root, split, options)`, `clips()` and `read(ref, frames)`; a class attribute `root_suffixes` where
   a single file may be the root. `resize_crop`, `pick` and `read_video` do the work that sources share, and
   `pipeline.sources.robot` that of robot data; heavy imports (av, mujoco, h5py) belong inside the functions that
   need them.
2. Add the line `"NAME": "pipeline.sources.NAME:Class"` to `_SOURCES` below.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_specs.datasets import DatasetSpec
from pipeline.config import suggest
from pipeline.sources.base import Source

_SOURCES = {
    "aloha": "pipeline.sources.aloha:AlohaSource",
    "lerobot": "pipeline.sources.lerobot:LeRobotSource",
    "libero": "pipeline.sources.libero:LiberoSource",
    "ssv2": "pipeline.sources.ssv2:Ssv2Source",
    "tabletop": "pipeline.sources.tabletop:TabletopSource",
    "video": "pipeline.sources.video:VideoSource",
}

_RECORDED = ("aloha", "lerobot", "libero")
_OFFLINE = "Without it, `cla sim record --format {} --clips 20 --seed 1 --out DIR` writes simulated clips to try."
_NOTHING: Mapping[str, str] = MappingProxyType({})


def dataset_names() -> tuple[str, ...]:
    """The names that `open_source` knows, sorted."""
    return tuple(sorted(_SOURCES))


def dataset_spec(name: str) -> DatasetSpec:
    """The facts about dataset `name`; ValueError with the choices for an unknown name. Opens nothing."""
    spec = _source_class(name).spec
    assert isinstance(spec, DatasetSpec), f"{_SOURCES[name]}.spec is no DatasetSpec"
    return spec


def open_source(
    name: str, root: Path | None = None, split: str | None = None, options: Mapping[str, str] = _NOTHING
) -> Source:
    """The dataset `name` under `root`, ready to list its clips.

    Args:
        name: one of `dataset_names()`.
        root: the dataset's folder; None for a dataset that needs none.
        split: one of the dataset's splits, None for all of them.
        options: the dataset's own `key=value` options.

    Raises:
        ValueError: an unknown name, split or option, or a root that is missing or holds no such dataset; the
            sentence says what was expected and what to do.
    """
    source_class = _source_class(name)
    spec = dataset_spec(name)
    hint = f"{spec.where} {_OFFLINE.format(name if name in _RECORDED else 'ssv2')}"
    if root is None and spec.needs_root:
        raise ValueError(f"Dataset {name!r} needs --root, the folder that holds it. {hint}")
    suffixes: tuple[str, ...] = getattr(source_class, "root_suffixes", ())
    if root is not None and not root.is_dir() and not (root.is_file() and root.suffix.lower() in suffixes):
        wanted = f"is not a folder{f' or a file {suffixes[0]}' if suffixes else ''}"
        state = wanted if root.exists() else "does not exist"
        raise ValueError(f"--root {root} {state}; dataset {name!r} is read from there. {hint}")
    source: Source = source_class(root, split, options)
    return source


def _source_class(name: str) -> Any:
    if name not in _SOURCES:
        choices = ", ".join(dataset_names())
        raise ValueError(f"Unknown dataset {name!r}; choose from {choices}.{suggest(name, _SOURCES)}")
    module, _, attribute = _SOURCES[name].partition(":")
    return getattr(import_module(module), attribute)
