"""Decompresses frames in threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_specs.arrays import Array
from pipeline.store.threads import helpers, share

if TYPE_CHECKING:
    from pipeline.store.shard import ShardReader


@dataclass(frozen=True)
class Unpacking:
    """Frames `frames` of a clip's array, to be written to `out[rows]`."""

    reader: "ShardReader"
    name: str
    clip: int
    frames: list[int]
    out: Array
    rows: list[int]


def unpack_all(tasks: Sequence[Unpacking]) -> None:
    """Do the tasks. Raises the ShardError of a frame that cannot be decompressed."""
    left = iter(tasks)

    def work() -> None:
        for task in left:  # the threads share it: each takes the next one
            task.reader.unpack(task.name, task.clip, task.frames, task.out, task.rows)

    share(work, min(helpers(), len(tasks) - 1))
