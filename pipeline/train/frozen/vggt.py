"""VGGT tiny: depth, confidence and cameras of the tabletop world, supervised by the simulator.

A sample is one group of windows with `GROUP` frames together: eight single frames of eight films, or four pairs, ...,
or one window of eight. So the model learns from frames on their own and from windows, at the same cost a step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config import Config
from pipeline.train.checkpoint import RunFolder, load_weights
from pipeline.train.data import load_ahead
from pipeline.train.frozen.filming import SIDE, WAYS, Film, Way, film, way_of
from pipeline.train.frozen.geometry_loss import camera_loss, depth_loss
from pipeline.train.frozen.shipping import write_weights
from pipeline.train.frozen.windows import Windows, shrink, stack, window
from pipeline.train.task import BatchPlan, Step, Task
from pipeline.train_config import TrainRecipe, TrainSection
from stages.vggt import VGGT, VGGT_TINY, VGGTConfig, init_random

GROUP = 8
LENGTHS = (1, 2, 4, 8)
"""Of windows, frames."""
SHARES = (0.45, 0.15, 0.15, 0.25)
"""Of the groups, by length of their windows."""
CAST: dict[Way, float] = {"standing": 0.55, "roaming": 0.35, "wrist": 0.1}
"""Of the windows, by how their film was made: mostly what will be extracted, and enough else to hold in general."""
DENSE = {1: 1, 2: 2, 4: 2, 8: 3}
"""Frames of a window whose depth is learnt at a step, by its length: the dense head is most of the work."""
_REVERSED = 0.3
_HELD_OUT_EVERY = 10


class FilmsSection(Config):
    """The films to learn from: `count` of them, `side` pixels square, of the simulator's `seed`.

    Evaluations take seeds below 1000.
    """

    count: int = Field(default=450, ge=2 * len(WAYS))
    seed: int = Field(default=1000, ge=1000)
    side: int = Field(default=SIDE, ge=28)


class VggtRecipe(TrainRecipe):
    """How VGGT tiny is trained. For the first `small_until` of the steps frames have `small_side` pixels."""

    name: str = "vggt_tiny"
    films: FilmsSection = FilmsSection()
    camera_weight: float = Field(default=10.0, ge=0)
    small_side: int = Field(default=112, ge=14)
    small_until: float = Field(default=0.5, ge=0, le=1)
    train: TrainSection = TrainSection(
        steps=2000,
        batch=1,
        lr=2e-3,
        lr_final=0.02,
        warmup=60,
        weight_decay=0.05,
        beta2=0.95,
        ema=0.99,
        workers=1,
        log_every=25,
        validate_every=500,
        validate_samples=10,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Windows of equal length; `dense` i8 [K]: the frames of each whose depth counts; `films`: where they are from."""

    windows: Windows
    dense: Tensor
    films: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupBatch:
    """A batch of groups: they may differ in the length of their windows."""

    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "GroupBatch":
        """A copy on `device`."""
        return GroupBatch(
            groups=tuple(
                replace(
                    group,
                    windows=group.windows.to(device, non_blocking=non_blocking),
                    dense=group.dense.to(device, non_blocking=non_blocking),
                )
                for group in self.groups
            )
        )


class Groups(Dataset[GroupBatch]):
    """Item `range` is the batch of these places of the training stream; a place gives the same group every time."""

    def __init__(self, films: Mapping[Way, Sequence[Path]], recipe: VggtRecipe) -> None:
        self._films, self._recipe = films, recipe
        shares = np.array([CAST[way] for way in films])
        self._ways, self._shares = list(films), shares / shares.sum()

    def __getitem__(self, places: range) -> GroupBatch:
        return GroupBatch(groups=tuple(self.group(place) for place in places))

    def group(self, place: int) -> Group:
        """The group at `place` of the stream."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, place])
        length = LENGTHS[rng.choice(len(LENGTHS), p=SHARES)]
        windows, names = [], []
        for _ in range(GROUP // length):
            films = self._films[self._ways[rng.choice(len(self._ways), p=self._shares)]]
            path = films[int(rng.integers(len(films)))]
            reel = Film.load(path)
            windows.append(window(reel, _choose(len(reel.rgb), length, rng), rng))
            names.append(path.stem)
        dense = np.sort(rng.permutation(length)[: DENSE[length]])
        stacked = stack(windows)
        samples = recipe.train.steps * recipe.train.batch * recipe.train.accumulate
        if place < recipe.small_until * samples:
            stacked = shrink(stacked, recipe.small_side)
        return Group(windows=stacked, dense=torch.from_numpy(dense), films=tuple(names))


def _choose(available: int, length: int, rng: np.random.Generator) -> list[int]:
    """Frames of a film in the order of time, or sometimes against it."""
    again = available < length
    frames = np.sort(rng.choice(available, length, replace=again))
    return [int(i) for i in (frames[::-1] if rng.random() < _REVERSED else frames)]


class VggtTask(Task[GroupBatch]):
    """Learns from the films in a folder, which `make_films` fills."""

    name: ClassVar[str] = "vggt-tiny"

    def __init__(self, recipe: VggtRecipe, films: Path) -> None:
        self.recipe: VggtRecipe = recipe
        self._held_out: list[Path] = []
        self._train: dict[Way, list[Path]] = {}
        for index, path in enumerate(film_path(films, index) for index in range(recipe.films.count)):
            # a whole round of the ways of filming at a time: every way is held out as often as it is learnt from
            if index // len(WAYS) % _HELD_OUT_EVERY == 0:
                self._held_out.append(path)
            else:
                self._train.setdefault(way_of(index), []).append(path)

    @classmethod
    def model_of(cls, recipe: VggtRecipe) -> VGGT:
        """VGGT tiny without the point head, which nothing trains."""
        model = VGGT(tiny_config())
        init_random(model, recipe.seed)
        return model

    def batches(self, plan: BatchPlan) -> Iterator[GroupBatch]:
        """Groups drawn at random, the small ones first."""
        return load_ahead(Groups(self._train, self.recipe), plan, self.recipe.train)

    def validation_batches(self, rank: int, world: int) -> Iterable[GroupBatch]:
        """Held-out films as they are, each as one window and its middle frame as another."""
        for path in self._held_out[: self.recipe.train.validate_samples][rank::world]:
            reel = Film.load(path)
            for frames in (range(len(reel.rgb)), [len(reel.rgb) // 2]):
                whole = window(reel, list(frames))
                yield GroupBatch(groups=(Group(windows=whole, dense=torch.arange(len(frames)), films=(path.stem,)),))

    def loss(self, model: Any, batch: GroupBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Depth loss plus weighted camera loss, and both parts."""
        depths, cameras = [], []
        for group in batch.groups:
            windows = group.windows
            out = model(windows.images, ("pose_enc", "depth", "depth_conf"), dense_frames=group.dense)
            truth = windows.depth[:, group.dense]
            depths.append(depth_loss(out["depth"].squeeze(-1), out["depth_conf"], truth))
            cameras.append(camera_loss(out["pose_enc"], windows.pose))
        depth, camera = torch.stack(depths).mean(), torch.stack(cameras).mean()
        scalars = {"depth": depth.detach(), "camera": camera.detach()}
        return depth + self.recipe.camera_weight * camera, scalars

    def keys(self, batch: GroupBatch) -> list[str]:
        """Numbers of the films."""
        return [name for group in batch.groups for name in group.films]


def tiny_config() -> VGGTConfig:
    """The sizes of the shipped model."""
    return replace(VGGT_TINY, point_head=False)


def film_path(folder: Path, index: int) -> Path:
    """Where film `index` lies in its folder."""
    return folder / f"{index:05d}.npz"


def make_films(folder: Path, section: FilmsSection) -> Iterator[int]:
    """Make the films that are not in `folder` yet; yields how many are there, after each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(section.count):
        path = film_path(folder, index)
        if not path.exists():
            film(section.seed, index, side=section.side).save(path)
        yield index + 1


def ship(run: Path, path: Path) -> None:
    """Write the best weights of the run in `run` to `path`, as the package ships them.

    Raises RequestError where there is no run, FailedError when its weights cannot be read or written.
    """
    folder = RunFolder(run)
    record = folder.record()
    recipe = VggtRecipe.model_validate(record.config)
    model = VggtTask.model_of(recipe)
    load_weights(model, folder.folder("best"))
    write_weights(
        path,
        model.state_dict(),
        tiny_config().to_dict(),
        {
            "about": "VGGT tiny: depth, confidence and cameras of the simulated tabletop world",
            "licence": "Apache-2.0",
            "trained": f"{recipe.train.steps} steps on {recipe.films.count} films of seed {recipe.films.seed}",
        },
    )
