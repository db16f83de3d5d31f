"""Which clips go into which shard: decided before anything is decoded, from the listing and the recipe alone.

A shard's clips never depend on what was found in them, on the number of workers or on where an earlier run stopped, so
that a resumed store equals an uninterrupted one byte for byte.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_specs.datasets import ClipRef
from pipeline.config import ExtractRecipe, RequestError

BYTES_A_POINT = 7
TOKENS_A_FRAME = 200
BYTES_AN_IMAGE = 15_000
UNLIMITED_FRAMES = 32
"""A nominal frame, to turn a shard's target size into a number of clips; `cla inspect-shards` shows the real sizes."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A shard to be written: its name and its clips, in order."""

    name: str
    refs: tuple[ClipRef, ...]

    def batches(self, clips: int) -> list[int]:
        """How many of the clips, one after the other, go through the models together: `clips`, and what is left."""
        return [min(clips, len(self.refs) - start) for start in range(0, len(self.refs), clips)]


def clips_per_shard(recipe: ExtractRecipe, channels: int, vision_bytes: int = 0) -> int:
    """How many whole batches of clips come nearest to the recipe's shard size, at least one, in clips.

    A batch never spans shards, so it has the same clips whatever the size of a shard and wherever a run stopped.
    `channels` are of the 3D tokens, `vision_bytes` a frame of the image encoders.
    """
    frame = recipe.points.count * BYTES_A_POINT + TOKENS_A_FRAME * channels * 2 + BYTES_AN_IMAGE + vision_bytes
    batch = recipe.batch.clips
    clips = recipe.store.shard_mb * 1e6 / (frame * (recipe.frames.max or UNLIMITED_FRAMES))
    return batch * max(1, round(clips / batch))


def plan_shards(refs: Sequence[ClipRef], per_shard: int, prefix: str = "") -> list[ShardPlan]:
    """Cut the listing into shards named `000000`, `000001`, …, with a prefix for those of a retry."""
    return [
        ShardPlan(name=f"{prefix}{number:06d}", refs=tuple(refs[start : start + per_shard]))
        for number, start in enumerate(range(0, len(refs), per_shard))
    ]


def listing_digest(refs: Iterable[ClipRef]) -> str:
    """SHA-256 of the keys and splits listed: a store is resumed over the same clips or not at all."""
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.key}\t{ref.split}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Every `of`-th shard, from the `number`-th on (1 is the first): what one of several extractions writes."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Partition":
        """`3/8`. RequestError, a sentence, for anything else."""
        number, slash, of = text.partition("/")
        if not slash or not (number.isdecimal() and of.isdecimal()) or not 1 <= int(number) <= int(of):
            raise RequestError(
                f"--partition {text} makes no sense: expected i/n with 1 <= i <= n, as 3/8 for the third of eight. "
                "In a SLURM array from 1 to n: --partition $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT."
            )
        return cls(number=int(number), of=int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def plans(self, plans: Sequence[ShardPlan]) -> list[ShardPlan]:
        """Its shards: neighbours go to different partitions, so that a folder of long videos is shared by all."""
        return list(plans[self.number - 1 :: self.of])
