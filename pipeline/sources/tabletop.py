"""The simulated tabletop world as a dataset: generated on the fly, or read from recorded `rgbd` files."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_specs.actions import accumulate
from data_specs.arrays import Array
from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling, safe_key
from data_specs.records import BadClip, Clip, Trajectory
from pipeline.foreign import BadJson, shortened
from pipeline.sim.camera import check_view
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.tasks import find_tasks
from pipeline.sources.base import check_options, check_ref, check_split, text_problem
from pipeline.sources.decode import MAX_SECONDS
from pipeline.sources.frames import check_count, pick_indices, resize_crop
from pipeline.sources.robot import MAX_STEPS, MAX_VALUE

T = TypeVar("T")

MAX_KEY = 200
"""Characters of a clip's key, which names a folder."""

_GENERATED = ("clips", "seed", "tasks", "view", "views", "camera_motion", "distractors", "perturb")
_RECORDED = ("view", "views")


class TabletopSource:
    """Demonstrations in the tabletop world at 20 frames a second, with depth, camera, state and action.

    `action` is that of the single control step (1/20 s) that starts at the frame; `extra["action_sum"]` f4 [F,7] is
    the sum of all before it, 0 at the start of the episode: the action accumulated between two frames is a difference.
    `trajectory` has the K control steps of the whole episode; a frame after the last of them was seen at step K.

    Options: `view` (agent or wrist), `views` (names with commas between: pictures in `Clip.views` beside those of
    `view`, of the same size); without a root also `clips` (how many, 20), `seed` (0), `tasks` (all, or names with
    commas between), `camera_motion` and `distractors` (true or false: the agent camera moves, things move that take no
    part), `perturb` (0; the scale of noise on what is executed, see `pipeline.sim.perturb`: `action` and `trajectory`
    keep what the expert wanted, `action_sum` what was done). A generated clip depends on seed, index, tasks and
    perturb only, and on whether these two are true; it equals the recorded one bit for bit if it was recorded at the
    size that is asked for.
    """

    spec = DatasetSpec(
        name="tabletop",
        title="Simulated tabletop demonstrations",
        splits=("train", "val"),
        where="Generated on the fly; `cla sim record --format rgbd --clips 20 --out DIR` writes it as files.",
        licence="Apache-2.0",
        needs_root=False,
        has_depth=True,
        state_dim=8,
        action_dim=7,
    )

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        self._root = root
        self._split = check_split(self.spec, split)
        check_options(self.spec, options, _GENERATED if root is None else _RECORDED)
        self._view = check_view(options.get("view", "agent"))
        self._views = _names(options.get("views", ""))
        self._clips = _whole(options, "clips", 20, least=1)
        self._seed = _whole(options, "seed", 0, least=0)
        self._camera_motion = _truth(options, "camera_motion")
        self._distractors = _truth(options, "distractors")
        self._perturb = _scale(options, "perturb")
        if self._camera_motion and "agent" not in (self._view, *self._views):
            raise ValueError("Option camera_motion moves the agent camera: leave it out with view=wrist.")
        self._tasks = options.get("tasks", "all")
        find_tasks(self._tasks)

    def clips(self) -> Sequence[ClipRef]:
        """The clips of the split, sorted by key. ValueError where `root` holds no whole recording of the view."""
        refs = self._list_generated() if self._root is None else self._list_recorded(self._root)
        return sorted((r for r in refs if self._split in (None, r.split)), key=lambda ref: ref.key)

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        """Simulate or decode one clip; only the frames that are taken are rendered or opened."""
        check_ref(ref)
        return self._generate(ref, frames) if self._root is None else self._decode(ref, frames)

    def _list_generated(self) -> list[ClipRef]:
        from pipeline.sim.episode import episode_key, episode_split, episode_task

        tasks = find_tasks(self._tasks)
        return [
            ClipRef(
                key=episode_key(self._seed, index, episode_task(index, tasks)), split=episode_split(index), index=index
            )
            for index in range(self._clips)
        ]

    def _generate(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        from pipeline.sim.episode import demonstrate

        episode = demonstrate(
            self._seed,
            ref.index,
            find_tasks(self._tasks),
            camera_motion=self._camera_motion,
            distractors=self._distractors,
            perturb=self._perturb,
        )
        time = episode.time
        taken = pick_indices(time, frames)
        check_count(ref.key, len(taken), frames, len(time))
        seen = {
            view: [episode.picture(float(time[i]), view, frames.size, frames.size) for i in taken]
            for view in dict.fromkeys((self._view, *self._views))
        }
        pictures = seen[self._view]
        return Clip(
            key=ref.key,
            split=ref.split,
            text=episode.scene.instruction,
            rgb=np.stack([p.rgb for p in pictures]),
            time=time[taken],
            depth=np.stack([p.depth for p in pictures]),
            intrinsic=np.stack([p.intrinsic for p in pictures]),
            extrinsic=np.stack([p.extrinsic for p in pictures]),
            state=episode.state[taken],
            action=episode.action[taken],
            is_pad=episode.is_pad[taken],
            extra={"action_sum": episode.action_sum[taken]},
            trajectory=episode.trajectory(np.array(taken)),
            views={view: np.stack([p.rgb for p in seen[view]]) for view in self._views},
        )

    def _list_recorded(self, root: Path) -> list[ClipRef]:
        from pipeline.sim.rgbd import CLIPS, INDEX, read_index

        index = read_index(root)
        for view in (self._view, *self._views):
            if view not in index["views"]:
                raise ValueError(f"{root} has no view {view!r}; it was recorded with {', '.join(index['views'])}.")
        refs = []
        for number, row in enumerate(index["clips"]):
            if not (isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("key", "split"))):
                raise ValueError(f"{root / INDEX}: clip {number} lacks key or split. Record it again.")
            key = row["key"]
            if safe_key(key) != key or "/" in key or len(key) > MAX_KEY:
                raise ValueError(
                    f"{root / INDEX}: clip {number} has the key {shortened(repr(key))}, which names no folder."
                )
            if row["split"] not in (*self.spec.splits, ""):
                raise ValueError(f"{root / INDEX}: clip {number} is of a split {shortened(repr(row['split']))}.")
            folder = root / CLIPS / key
            refs.append(
                ClipRef(
                    key=key,
                    split=row["split"],
                    text=str(row.get("instruction", "")),
                    path=folder,
                    index=number,
                    problem=_problem(folder, str(row.get("instruction", ""))),
                )
            )
        return refs

    def _decode(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        from pipeline.sim.rgbd import read_clip_json, read_frame

        assert ref.path is not None
        try:
            clip = read_clip_json(ref.path)
            time = _times(clip["time"])
            count = len(time)
            state = _floats(clip["state"], (count, self.spec.state_dim))
            action = _floats(clip["action"], (count, self.spec.action_dim))
            is_pad = np.array(clip["is_pad"], dtype=bool).reshape(count)
            # not written where every control step is a frame, so that it follows
            action_sum = _floats(clip["action_sum"], action.shape) if "action_sum" in clip else accumulate(action)
            camera = clip["cameras"][self._view]
            intrinsic = _floats(camera["intrinsic"], (count, 3, 3))
            extrinsic = _floats(camera["extrinsic"], (count, 3, 4))
            text = str(clip["instruction"])
            if problem := text_problem(text):
                raise ValueError(f"the instruction {problem}")
            trajectory = self._trajectory(clip, state, action, is_pad)
        except BadJson as error:
            raise BadClip(ref.key, f"{ref.path}/clip.json {error}; record the clip again") from None
        except OSError as error:
            raise BadClip(ref.key, f"{ref.path}/clip.json cannot be read ({error})") from None
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            said = shortened(repr(error))
            raise BadClip(ref.key, f"{ref.path}/clip.json does not fit the rgbd layout ({said})") from None
        taken = pick_indices(time, frames)
        check_count(ref.key, len(taken), frames, count)
        rgbs, depths, intrinsics = [], [], []
        for i in taken:
            rgb, depth = _read(ref.key, read_frame, ref.path, self._view, i)
            if rgb.shape[:2] != depth.shape:
                raise BadClip(ref.key, f"frame {i} has colour {rgb.shape[:2]} and depth {depth.shape}")
            if rgb.shape[:2] == (frames.size, frames.size):
                resized: tuple[Array, Array | None, Array | None] = (rgb, depth, intrinsic[i])
            else:
                resized = resize_crop(rgb, depth, intrinsic[i], frames.size)
            rgbs.append(resized[0])
            depths.append(resized[1])
            intrinsics.append(resized[2])
        return Clip(
            key=ref.key,
            split=ref.split,
            text=text,
            rgb=np.stack(rgbs),
            time=time[taken],
            depth=np.stack([d for d in depths if d is not None]),
            intrinsic=np.stack([k for k in intrinsics if k is not None]),
            extrinsic=extrinsic[taken],
            state=state[taken],
            action=action[taken],
            is_pad=is_pad[taken],
            extra={"action_sum": action_sum[taken]},
            trajectory=None if trajectory is None else replace(trajectory, step=trajectory.step[taken]),
            views={view: self._pictures(ref, view, taken, frames.size) for view in self._views},
        )

    def _trajectory(self, clip: dict[str, Any], state: Array, action: Array, is_pad: Array) -> Trajectory | None:
        """The whole episode with the step of every recorded frame; None in a recording that lacks control steps."""
        if clip.get("fps", CONTROL_HZ) == CONTROL_HZ:
            steps = int((~is_pad).sum())
            return Trajectory(state=state[:steps], action=action[:steps], step=np.arange(len(is_pad)), hz=CONTROL_HZ)
        if "trajectory" not in clip:  # recorded before there was one
            return None
        whole = clip["trajectory"]
        states = _floats(whole["state"], (None, self.spec.state_dim))
        actions = _floats(whole["action"], (len(states), self.spec.action_dim))
        step = np.array(whole["step"], dtype=np.int64).reshape(len(is_pad))
        if (step[1:] <= step[:-1]).any() or (len(step) and not 0 <= step[0] <= step[-1] <= len(states)):
            raise ValueError("trajectory steps that do not increase from 0 to the number of control steps")
        return Trajectory(state=states, action=actions, step=step, hz=CONTROL_HZ)

    def _pictures(self, ref: ClipRef, view: str, taken: Sequence[int], size: int) -> Array:
        """The frames u1 [F,size,size,3] of a further view."""
        from pipeline.sim.rgbd import read_rgb

        assert ref.path is not None
        rgbs = (_read(ref.key, read_rgb, ref.path, view, i) for i in taken)
        return np.stack([rgb if rgb.shape[:2] == (size, size) else resize_crop(rgb, size=size)[0] for rgb in rgbs])


def _problem(folder: Path, text: str) -> str | None:
    """What is wrong with a clip that is listed."""
    if problem := text_problem(text):
        return f"its instruction {problem}"
    return None if folder.is_dir() else f"its folder {folder.parent.name}/{folder.name} is missing"


def _read(key: str, reader: Callable[[Path, str, int], T], folder: Path, view: str, index: int) -> T:
    try:
        return reader(folder, view, index)
    except (OSError, ValueError) as error:
        raise BadClip(key, f"{folder}: frame {index} of view {view} cannot be read ({shortened(error)})") from None


def _floats(values: Any, shape: tuple[int | None, ...], dtype: type[np.floating[Any]] = np.float32) -> Array:
    """`values` as an array of `shape` (None: any); ValueError if they are not."""
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=dtype)
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"expected shape {shape}, found {array.shape}")
    if not (np.abs(array) <= MAX_VALUE).all():
        raise ValueError(f"numbers that are not finite, or greater than {MAX_VALUE:g}")
    return array


def _times(values: Any) -> Array:
    """Times of frames f8 [F], which increase; ValueError if they are none."""
    time = _floats(values, (None,), np.float64)
    if not 0 < len(time) <= MAX_STEPS or (np.diff(time) <= 0).any() or time[-1] - time[0] > MAX_SECONDS:
        raise ValueError(
            f"times of {len(time)} frames, expected 1 to {MAX_STEPS} that increase, within {MAX_SECONDS:g} s"
        )
    return time


def _names(text: str) -> tuple[str, ...]:
    names = tuple(check_view(name.strip()) for name in text.split(",")) if text else ()
    if len(set(names)) != len(names):
        raise ValueError(f"Option views={text!r} of dataset 'tabletop': expected each view once.")
    return names


def _truth(options: Mapping[str, str], name: str) -> bool:
    text = options.get(name, "false")
    if text not in ("true", "false"):
        raise ValueError(f"Option {name} of dataset 'tabletop' is true or false, got {text!r}.")
    return text == "true"


def _scale(options: Mapping[str, str], name: str) -> float:
    text = options.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Option {name} of dataset 'tabletop' is a number of at least 0 (0: no noise), got {text!r}.")
    return value


def _whole(options: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"Option {name} of dataset 'tabletop' is a whole number of at least {least}, got {text!r}.")
    return int(text)
