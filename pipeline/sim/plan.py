"""What is recorded, in which format: what the recorders of all formats know, and what each of them offers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.sim.episode import Episode, demonstrate
from pipeline.sim.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recording under `out`. `views` are cameras of the world, pictures are `height` x `width` pixels."""

    out: Path
    seed: int
    task_names: str
    tasks: tuple[Task, ...]
    views: tuple[str, ...]
    height: int
    width: int
    fps: float
    camera_motion: bool
    distractors: bool
    perturb: float

    @property
    def parts(self) -> Path:
        """A folder for what is put together at the end; it is gone when the recording is whole."""
        return self.out / PARTS

    def episode(self, index: int) -> Episode:
        """Demonstration `index`."""
        return demonstrate(
            self.seed,
            index,
            self.tasks,
            camera_motion=self.camera_motion,
            distractors=self.distractors,
            perturb=self.perturb,
        )


class Format(Protocol):
    """A module that writes episodes in one format."""

    VIEWS: tuple[str, ...]
    """The cameras that are recorded when none are named."""
    SIZES: tuple[int, int]
    """Height and width of the pictures when no size is asked for."""

    def prepare(self, plan: Plan) -> None:
        """Make the folders that `write` writes to."""
        ...

    def write(self, plan: Plan, index: int) -> dict[str, Any]:
        """Write clip `index`, in any process; its row for `finish`. Depends on nothing but its arguments."""
        ...

    def finish(self, plan: Plan, rows: list[dict[str, Any]]) -> None:
        """Write what comes last: its presence says that the recording is whole. `rows` are those of clips 0, 1, ..."""
        ...


PARTS = ".parts"
