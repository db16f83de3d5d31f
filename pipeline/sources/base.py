"""What every dataset offers to the pipeline, and the checks that they share."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling, safe_key
from data_specs.records import BadClip, Clip
from pipeline.config import suggest

MAX_TEXT = 10_000
"""Characters of an instruction or a label."""


class Source(Protocol):
    """A dataset: constructed as `Class(root: Path | None, split: str | None, options: Mapping[str, str])`.

    A source is picklable and small when pickled: workers get a copy and read the clips that they are told to. The
    constructor raises ValueError for a split or an option that it does not know. A class attribute `root_suffixes`
    names the suffixes of files that may stand for a folder as `root`. An instance's `spec` may say more than the
    class's, where a dataset's files tell their own widths and splits.
    """

    @property
    def spec(self) -> DatasetSpec:
        """The dataset's facts; a class attribute, so that it is known before anything is opened."""
        ...

    def clips(self) -> Sequence[ClipRef]:
        """Every clip, sorted by key (as strings), the same on each call; decodes nothing.

        Keys are unique and safe (`data_specs.datasets.safe_key`). A clip that is known to be bad is listed with
        `problem` set. ValueError where the folder holds no such dataset.
        """
        ...

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """Decode one clip; raises BadClip(key, reason) for data that cannot be used."""
        ...


def check_split(spec: DatasetSpec, split: str | None, aliases: Mapping[str, str] | None = None) -> str | None:
    """`split` under its full name, None for all; ValueError with the choices for an unknown one."""
    if split is None:
        return None
    name = (aliases or {}).get(split, split)
    if name in spec.splits:
        return name
    if not spec.splits:
        raise ValueError(f"Dataset {spec.name!r} has no splits; leave --split {split} out.")
    choices = ", ".join(spec.splits)
    raise ValueError(
        f"Dataset {spec.name!r} has no split {split!r}; choose from {choices}, or leave --split out for all."
        f"{suggest(split, spec.splits)}"
    )


def check_options(spec: DatasetSpec, options: Mapping[str, str], known: Iterable[str] = ()) -> None:
    """Raise ValueError for the first option that is not among `known`."""
    names = sorted(known)
    for name in options:
        if name not in names:
            choices = f"its options are {', '.join(names)}" if names else "it has none"
            raise ValueError(f"Dataset {spec.name!r} has no option {name!r}; {choices}.{suggest(name, names)}")


def check_ref(ref: ClipRef) -> None:
    """Raise the problem that the listing found with this clip, if any, as BadClip."""
    if ref.problem is not None:
        raise BadClip(ref.key, ref.problem)


def unique_keys(identities: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """A safe, unique key for each of the distinct `identities`, whatever their order.

    The key of a clip is `safe_key` of its name (`names`, by default the identity itself). Where several clips would
    share a key, each of them gets a suffix from the SHA-256 of its identity.
    """
    assert len(set(identities)) == len(identities), "identities must be distinct"
    keys = [safe_key(name) for name in (identities if names is None else names)]
    length = 8
    shared = {key for key, count in Counter(keys).items() if count > 1}
    while shared:
        keys = [
            f"{key}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:length]}"
            if key in shared
            else key
            for key, identity in zip(keys, identities, strict=True)
        ]
        # A suffixed key may meet another clip's plain key; then both get a longer suffix.
        shared = {key for key, count in Counter(keys).items() if count > 1}
        length += 8
    return keys


def text_problem(text: str) -> str | None:
    """What is wrong with a text from a dataset's files, to follow its name; None for one that a store can keep."""
    if len(text) > MAX_TEXT:
        return f"has {len(text):,} characters, expected at most {MAX_TEXT:,}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"holds half a character ({text[:60]!r}), expected text"
    return None
