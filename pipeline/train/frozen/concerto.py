"""Concerto tiny: features of tabletop clouds that say what is where and what moves, learnt without any labels."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pipeline.train.checkpoint import RunFolder, load_weights
from pipeline.train.data import load_ahead
from pipeline.train.frozen.clouds import CloudPairs, CloudsSection, PairBatch
from pipeline.train.frozen.distil import Pretraining, total
from pipeline.train.frozen.filming import film
from pipeline.train.frozen.shipping import write_weights
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train_config import TrainRecipe, TrainSection
from stages.concerto import TINY

_VALIDATION_EVERY = 10
_STATISTICS_PAIRS = 64
_FIRST_MOMENTUM = 10
"""Steps over which the teacher's momentum grows: (1 + n) / (10 + n), up to the recipe's."""


class ConcertoRecipe(TrainRecipe):
    """How Concerto tiny is trained; `momentum` is the teacher's, whose weights are the ones that count."""

    name: str = "concerto_tiny"
    clouds: CloudsSection = CloudsSection()
    momentum: float = Field(default=0.99, ge=0, lt=1)
    train: TrainSection = TrainSection(
        steps=800,
        batch=8,
        lr=2e-3,
        lr_final=0.02,
        warmup=40,
        weight_decay=0.03,
        beta2=0.98,
        workers=1,
        log_every=20,
        validate_every=200,
        validate_samples=48,
    )


class ConcertoTask(Task[PairBatch]):
    """Learns from the films in a folder, which `make_standing_films` fills."""

    name: ClassVar[str] = "concerto-tiny"
    recipe_type: ClassVar[type[TrainRecipe]] = ConcertoRecipe

    def __init__(self, recipe: ConcertoRecipe, films: Path) -> None:
        self.recipe: ConcertoRecipe = recipe
        paths = [film_path(films, index) for index in range(recipe.clouds.films)]
        self._held_out = CloudPairs(paths[_VALIDATION_EVERY - 1 :: _VALIDATION_EVERY], recipe.clouds, recipe.seed)
        train = [path for index, path in enumerate(paths) if index % _VALIDATION_EVERY != _VALIDATION_EVERY - 1]
        self._train = CloudPairs(train, recipe.clouds, recipe.seed)

    @classmethod
    def model_of(cls, recipe: ConcertoRecipe) -> Pretraining:
        """Student, teacher and heads."""
        return Pretraining(recipe.seed)

    def start(self, model: Pretraining, device: torch.device) -> None:
        """Means and deviations of the targets, from the first pairs of the stream."""
        model.set_statistics(self._train[range(_STATISTICS_PAIRS)].to(device))

    def batches(self, plan: BatchPlan) -> Iterator[PairBatch]:
        """Pairs drawn at random."""
        return load_ahead(self._train, plan, self.recipe.train)

    def validation_batches(self, rank: int, world: int) -> Iterable[PairBatch]:
        """Pairs of held-out films, the same every time."""
        batch, samples = self.recipe.train.batch, self.recipe.train.validate_samples
        for start in range(rank * batch, samples, world * batch):
            yield self._held_out[range(start, min(start + batch, samples))]

    def loss(self, model: Any, batch: PairBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the parts, and the parts."""
        parts = model(batch)
        return total(parts), {name: part.detach() for name, part in parts.items()}

    def after_step(self, model: Pretraining, number: int) -> None:
        """Move the teacher."""
        model.update_teacher(min(self.recipe.momentum, (1 + number) / (_FIRST_MOMENTUM + number)))

    def keys(self, batch: PairBatch) -> list[str]:
        """Numbers of the films."""
        return list(batch.films)


def film_path(folder: Path, index: int) -> Path:
    """Where film `index` lies in its folder."""
    return folder / f"{index:05d}.npz"


def make_standing_films(folder: Path, section: CloudsSection) -> Iterator[int]:
    """Make the films of a camera that stands still that are not in `folder` yet; yields how many are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(section.films):
        path = film_path(folder, index)
        if not path.exists():
            film(section.seed, index, way="standing", frames=section.frames).save(path)
        yield index + 1


def ship(run: Path, path: Path) -> None:
    """Write the teacher of the last checkpoint of the run in `run` to `path`, as the package ships it.

    The last and not the best: the parts that matter are noisy on few held-out pairs, and the rate has fallen to
    nearly nothing by then. Raises RequestError where there is no run, FailedError when files fail.
    """
    folder = RunFolder(run)
    recipe = ConcertoRecipe.model_validate(folder.record().config)
    model = ConcertoTask.model_of(recipe)
    load_weights(model, folder.folder("last"))
    write_weights(
        path,
        model.teacher.state_dict(),
        TINY.to_dict(),
        {
            "about": "Concerto tiny: a PTv3 encoder of simulated tabletop clouds, trained without labels",
            "licence": "Apache-2.0",
            "trained": (
                f"{recipe.train.steps} steps of {recipe.train.batch} pairs from {recipe.clouds.films} films of seed "
                f"{recipe.clouds.seed}; {recipe.clouds.normalise} normalisation, grid {recipe.clouds.grid:g}"
            ),
        },
    )
