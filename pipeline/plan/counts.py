"""How many clips and frames a dataset gives: listed and sampled where it is there, else from published numbers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.config import RequestError
from pipeline.sources.base import Source
from pipeline.sources.frames import pick_indices


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """A dataset whose size is published: clips by split, frames a second, seconds of the shortest and longest clip."""

    clips: dict[str, int]
    fps: float
    seconds: tuple[float, float]
    source: str


KNOWN = {
    # Clips and rate as its label files and videos have them. Goyal et al. (ICCV 2017, section 4): videos last 2 to 6 s.
    "ssv2": KnownDataset(
        clips={"train": 168_913, "validation": 24_777, "test": 27_157},
        fps=12.0,
        seconds=(2.0, 6.0),
        source="published numbers; durations taken as spread evenly over 2 to 6 s",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Clips of a dataset and frames that a recipe takes of them.

    `frames_per_clip` is a mean, `spread` its standard error (0 where it follows from known numbers), `bad_fraction`
    the share of the sampled clips that could not be used, `read_s` seconds to decode a frame (None: not measured).
    `source` says where the numbers are from; `sample` is a decoded clip, for the probe.
    """

    clips: int
    frames_per_clip: float
    source: str
    spread: float = 0.0
    bad_fraction: float = 0.0
    read_s: float | None = None
    sample: Clip | None = None

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return round(self.clips * (1 - self.bad_fraction) * self.frames_per_clip)


def known_counts(name: str, split: str | None, sampling: FrameSampling, limit: int | None = None) -> Counts:
    """Counts of a dataset that is not there. RequestError for one of unknown size, or a split it does not have."""
    if name not in KNOWN:
        raise RequestError(
            f"Dataset {name} has no known size: give --root, the folder that holds it. Known without it: "
            f"{', '.join(KNOWN)}."
        )
    known = KNOWN[name]
    split = "validation" if split == "val" else split
    if split is not None and split not in known.clips:
        raise RequestError(f"Dataset {name} has no split {split!r}; choose from {', '.join(known.clips)}.")
    clips = sum(known.clips.values()) if split is None else known.clips[split]
    return Counts(
        clips=clips if limit is None else min(clips, limit),
        frames_per_clip=mean_frames(sampling, known.fps, known.seconds),
        source=known.source,
    )


def mean_frames(sampling: FrameSampling, fps: float, seconds: tuple[float, float]) -> float:
    """Frames taken of a clip, on average over durations spread evenly between two; see `FrameSampling`."""
    durations = np.linspace(*seconds, 101)
    frames = [np.arange(max(1, round(duration * fps))) / fps for duration in durations.tolist()]
    taken = [len(pick_indices(times, sampling)) for times in frames]
    return float(np.mean([count for count in taken if count >= sampling.min] or [0]))


def sampled_counts(source: Source, refs: Sequence[ClipRef], sampling: FrameSampling, sample: int) -> Counts:
    """Counts of a dataset that is there: all clips listed, `sample` of them, evenly spread, decoded.

    Raises RequestError when none of those can be used.
    """
    chosen = [refs[i] for i in np.unique(np.linspace(0, len(refs) - 1, min(sample, len(refs))).round().astype(int))]
    taken: list[int] = []
    clip, problem = None, ""
    start = time.perf_counter()
    for ref in chosen:
        try:
            clip = source.read(ref, sampling)
        except BadClip as error:
            problem = str(error)
        else:
            taken.append(len(clip))
    seconds = time.perf_counter() - start
    if not taken:
        raise RequestError(f"None of {len(chosen)} clips tried can be used; the last: {problem}.")
    return Counts(
        clips=len(refs),
        frames_per_clip=float(np.mean(taken)),
        spread=float(np.std(taken) / math.sqrt(len(taken))),
        bad_fraction=1 - len(taken) / len(chosen),
        read_s=seconds / sum(taken),
        source=f"listed; frames from {len(chosen)} clips that were decoded",
        sample=clip,
    )
