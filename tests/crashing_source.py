"""A dataset whose decoding kills its process, as a crash in a codec would. In a module of its own for `spawn`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import Clip


class CrashingSource:
    spec = DatasetSpec(name="crashing", title="", splits=(), where="", licence="", needs_root=False)

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        pass

    def clips(self) -> Sequence[ClipRef]:
        return [ClipRef(key=f"clip{i}") for i in range(3)]

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        os._exit(11)
