"""What the sources of recorded robot data share: an episode's arrays, checked, and the fields of a clip that follow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.actions import accumulate
from data_specs.arrays import Array
from data_specs.datasets import DatasetSpec
from data_specs.records import BadClip, Trajectory
from pipeline.config import suggest
from pipeline.foreign import UNREADABLE, shortened
from pipeline.sources.frames import resize_crop

VIEW_OPTIONS = ("view", "views", "views_size")
MAX_VALUE = 1e12
"""Of a state or an action: sums and squares of a whole dataset of them stay finite."""

MAX_STEPS = 1_000_000
"""Of an episode: 5.5 hours at 50 a second."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RobotEpisode:
    """An episode of T moments: `state` f4 [T,S] and `action` f4 [T,A] (None where the dataset has none), `hz` a second.

    `action[i]` leads on from moment i. `padded` says that none leads on from the last moment, so that `action[-1]` is
    made up.
    """

    state: Array | None
    action: Array | None
    hz: float
    padded: bool = False

    def fields(self, taken: Sequence[int]) -> dict[str, Any]:
        """The fields of a `Clip` that shows the moments `taken`."""
        if self.action is None:
            return {"state": None if self.state is None else self.state[taken]}
        is_pad = np.zeros(len(self.action), dtype=bool)
        is_pad[-1] = self.padded
        steps = len(self.action) - self.padded
        state = np.zeros((len(self.action), 0), dtype=np.float32) if self.state is None else self.state
        return {
            "state": None if self.state is None else self.state[taken],
            "action": self.action[taken],
            "is_pad": is_pad[taken],
            "extra": {"action_sum": accumulate(self.action)[taken]},
            "trajectory": Trajectory(
                state=state[:steps], action=self.action[:steps], step=np.array(taken, dtype=np.int64), hz=self.hz
            ),
        }


def robot_array(key: str, name: str, values: Any, *, dims: int, rows: int | None = None) -> Array:
    """`values` as finite f4 [T,dims] of `rows` rows, where that is known; BadClip that calls them `name` otherwise."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is too great is named below
            array = np.asarray(values, dtype=np.float32)
    except UNREADABLE as error:
        raise BadClip(key, f"{name} is no table of numbers ({shortened(error)}); record the episode again") from None
    if array.ndim == 1 and dims == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != dims:
        raise BadClip(key, f"{name} has shape {array.shape}, expected (steps, {dims}); record the episode again")
    if rows is not None and len(array) != rows:
        raise BadClip(
            key, f"{name} has {len(array)} rows, expected {rows} as the rest of the episode; record the episode again"
        )
    if not 0 < len(array) <= MAX_STEPS:
        raise BadClip(key, f"{name} has {len(array)} rows, expected 1 to {MAX_STEPS}")
    bad = np.argwhere(~(np.abs(array) <= MAX_VALUE))
    if len(bad):
        step, dim = bad[0]
        raise BadClip(
            key,
            f"{name} is {array[step, dim]} at step {step}, dimension {dim} ({len(bad)} such numbers), expected finite"
            f" ones of at most {MAX_VALUE:g}; record the episode again or cut it before that step",
        )
    return array


def still_action(action: Array, *, gripper: Sequence[int]) -> Array:
    """An action [1,A] that goes nowhere, for deltas: 0, and the dimensions `gripper` as in the last of `action`."""
    still = np.zeros_like(action[-1:])
    still[0, list(gripper)] = action[-1, list(gripper)]
    return still


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which cameras a source reads: the one of `Clip.rgb`, further ones, and the size of the further ones' pictures.

    `size` is pixels of a centre-cropped square, None for the pictures as they were recorded.
    """

    main: str
    further: tuple[str, ...]
    size: int | None

    @classmethod
    def chosen(cls, spec: DatasetSpec, options: Mapping[str, str], known: Sequence[str], default: str) -> "Views":
        """By the options `view`, `views` and `views_size`; ValueError with the choices among `known`."""
        main = options.get("view", default)
        further = tuple(name.strip() for name in options["views"].split(",")) if options.get("views") else ()
        for name in (main, *further):
            if name not in known:
                choices = ", ".join(known) or "none"
                raise ValueError(
                    f"Dataset {spec.name!r} has no camera {name!r}; choose from {choices}.{suggest(name, known)}"
                )
        if len(set(further)) != len(further):
            raise ValueError(f"Option views={options['views']!r} of dataset {spec.name!r}: expected each camera once.")
        text = options.get("views_size", "native")
        if text != "native" and not (text.isdecimal() and int(text) >= 14):
            raise ValueError(
                f"Option views_size={text!r} of dataset {spec.name!r}: expected native (as recorded) or pixels, 14 or"
                " more."
            )
        return cls(main=main, further=further, size=None if text == "native" else int(text))

    def pictures(self, read: Callable[[str, int | None], Array], size: int) -> dict[str, Any]:
        """`rgb` and `views` of a `Clip`; `read(camera, size)` gives u1 [F,size,size,3], or [F,h,w,3] without a size."""
        return {"rgb": read(self.main, size), "views": {name: read(name, self.size) for name in self.further}}


def fitted(rgb: Array, size: int | None) -> Array:
    """One picture u1 [h,w,3] as it is, or resized and cropped to a square of `size`."""
    if size is None or rgb.shape[:2] == (size, size):
        return np.ascontiguousarray(rgb)
    return resize_crop(np.ascontiguousarray(rgb), size=size)[0]


def positive(spec: DatasetSpec, options: Mapping[str, str], name: str, default: float) -> float:
    """The option `name` as a number above 0; ValueError otherwise."""
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = 0.0
    if not 0 < value < 1e4:
        raise ValueError(f"Option {name}={options[name]!r} of dataset {spec.name!r}: expected a number above 0.")
    return value


def choice(spec: DatasetSpec, options: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """The option `name`, one of `choices`, by default the first; ValueError otherwise."""
    value = options.get(name, choices[0])
    if value not in choices:
        raise ValueError(
            f"Option {name}={value!r} of dataset {spec.name!r}: choose from {', '.join(choices)}."
            f"{suggest(value, choices)}"
        )
    return value
