"""Videos, one of which kills the process that reads it, the first time. In a module of its own for Ray's actors."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import Clip
from pipeline.sources.video import VideoSource

DIES_AT = 3
"""The clip, as it is listed."""


class DyingVideos(VideoSource):
    """`CLA_TEST_DIED` names the file that says that it has happened; it holds the process that died."""

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        super().__init__(root, split, options)
        self._died = os.environ["CLA_TEST_DIED"]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_died": self._died}

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        if ref.key == self.clips()[DIES_AT].key:
            try:
                died = os.open(self._died, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return super().read(ref, frames)
            os.write(died, str(os.getpid()).encode())
            os.fsync(died)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(ref, frames)
