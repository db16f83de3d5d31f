"""How a run's training data saw the robot, and the same sight of an environment's observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import Clip
from data_specs.shards import VIEWS
from pipeline.config import ExtractRecipe, RequestError, suggest
from pipeline.evaluate.policy.environment import EnvironmentSpec, Observation
from pipeline.sources.frames import resize_crop
from pipeline.sources.robot import fitted

_NATIVE = "native"


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The cameras that a policy's observations are made of.

    Attributes:
        main: the environment's camera behind the store's own square frame of `size` pixels.
        further: pairs of a view of the store and the environment's camera behind it.
        views_size: side of a further view's square pictures; None for pictures as the camera makes them.
    """

    main: str
    further: tuple[tuple[str, str], ...]
    size: int
    views_size: int | None

    @classmethod
    def of(
        cls, dataset: Mapping[str, Any], recipe: ExtractRecipe, columns: Sequence[str], spec: EnvironmentSpec
    ) -> "Sight":
        """That of a run, by its store's `dataset` and extraction `recipe`, for a policy that reads `columns`.

        RequestError where the environment has no such camera.
        """
        options = {name: str(value) for name, value in dataset.get("options", {}).items()}
        main = options.get("view")
        same = dataset.get("name") == "tabletop"  # whose further views are of the main one's size
        pixels = options.get("views_size", _NATIVE)
        return cls(
            main=spec.views[0] if main is None else _camera(main, spec),
            further=tuple(
                (name, _camera(name, spec))
                for name in (column.removeprefix(VIEWS) for column in columns if column.startswith(VIEWS))
            ),
            size=recipe.frames.size,
            views_size=recipe.frames.size if same else None if pixels == _NATIVE else int(pixels),
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The environment's cameras that are needed."""
        return tuple(dict.fromkeys([self.main, *(camera for _, camera in self.further)]))

    def clip(self, observation: Observation, key: str) -> Clip:
        """An observation as a clip of one frame, as the dataset's source would have read it."""
        view = observation.views[self.main]
        rgb, depth, intrinsic = view.rgb, view.depth, view.intrinsic
        if rgb.shape[:2] != (self.size, self.size):
            rgb, depth, intrinsic = resize_crop(rgb, depth, intrinsic, self.size)
        return Clip(
            key=key,
            text=observation.instruction,
            rgb=np.ascontiguousarray(rgb)[None],
            time=np.zeros(1),
            depth=_one(depth),
            intrinsic=_one(intrinsic),
            extrinsic=_one(view.extrinsic),
            state=observation.state[None],
            views={name: fitted(observation.views[camera].rgb, self.views_size)[None] for name, camera in self.further},
        )


def _camera(name: str, spec: EnvironmentSpec) -> str:
    """The environment's camera that a dataset calls `name`."""
    known = {**{camera: camera for camera in spec.views}, **spec.also_called}
    if name not in known:
        raise RequestError(
            f"The run's data has a camera {name!r}, which environment {spec.name} does not have: it has "
            f"{', '.join(spec.views)}.{suggest(name, known)}"
        )
    return known[name]


def _one(array: Array | None) -> Array | None:
    return None if array is None else array[None]
