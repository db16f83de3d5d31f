"""The simulated tabletop world as a dataset: generated on the fly, or read from recorded `rgbd` files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling, safe_key
from data_specs.records import BadClip, Clip
from pipeline.sim.camera import check_view
from pipeline.sim.tasks import find_tasks
from pipeline.sources.base import check_options, check_ref, check_split
from pipeline.sources.frames import check_count, pick_indices, resize_crop

_GENERATED = ("clips", "seed", "tasks", "view", "camera_motion", "distractors")
_RECORDED = ("view",)


class TabletopSource:
    """Demonstrations in the tabletop world at 20 frames a second, with depth, camera, state and action.

    `action` is that of the single control step (1/20 s) that starts at the frame; `extra["action_sum"]` f4 [F,7] is
    the sum of all before it, 0 at the start of the episode: the action accumulated between two frames is a difference.

    Options: `view` (agent or wrist); without a root also `clips` (how many, 20), `seed` (0), `tasks` (all, or names
    with commas between), `camera_motion` and `distractors` (true or false: the agent camera moves, things move that
    take no part). A generated clip depends on seed, index and tasks only, and on whether these two are true; it equals
    the recorded one bit for bit if it was recorded at the size that is asked for.
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
        self._clips = _whole(options, "clips", 20, least=1)
        self._seed = _whole(options, "seed", 0, least=0)
        self._camera_motion = _truth(options, "camera_motion")
        self._distractors = _truth(options, "distractors")
        if self._camera_motion and self._view != "agent":
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
        )
        time = episode.time
        taken = pick_indices(time, frames)
        check_count(ref.key, len(taken), frames, len(time))
        pictures = [episode.picture(float(time[i]), self._view, frames.size, frames.size) for i in taken]
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
        )

    def _list_recorded(self, root: Path) -> list[ClipRef]:
        from pipeline.sim.rgbd import CLIPS, INDEX, read_index

        index = read_index(root)
        if self._view not in index["views"]:
            raise ValueError(f"{root} has no view {self._view!r}; it was recorded with {', '.join(index['views'])}.")
        refs = []
        for number, row in enumerate(index["clips"]):
            if not (isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("key", "split"))):
                raise ValueError(f"{root / INDEX}: clip {number} lacks key or split. Record it again.")
            key = row["key"]
            if safe_key(key) != key or "/" in key:
                raise ValueError(f"{root / INDEX}: clip {number} has the key {key!r}, which names no folder.")
            folder = root / CLIPS / key
            refs.append(
                ClipRef(
                    key=key,
                    split=row["split"],
                    text=str(row.get("instruction", "")),
                    path=folder,
                    index=number,
                    problem=None if folder.is_dir() else f"its folder {CLIPS}/{key} is missing",
                )
            )
        return refs

    def _decode(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        from pipeline.sim.episode import accumulate
        from pipeline.sim.rgbd import read_clip_json, read_frame

        assert ref.path is not None
        try:
            clip = read_clip_json(ref.path)
            time = _floats(clip["time"], (None,), np.float64)
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
        except (OSError, json.JSONDecodeError) as error:
            raise BadClip(ref.key, f"clip.json cannot be read ({error})") from None
        except (KeyError, TypeError, ValueError) as error:
            raise BadClip(ref.key, f"clip.json does not fit the rgbd layout ({error!r})") from None
        taken = pick_indices(time, frames)
        check_count(ref.key, len(taken), frames, count)
        rgbs, depths, intrinsics = [], [], []
        for i in taken:
            try:
                rgb, depth = read_frame(ref.path, self._view, i)
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
                raise BadClip(ref.key, f"frame {i} cannot be read ({error})") from None
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
        )


def _floats(values: Any, shape: tuple[int | None, ...], dtype: type[np.floating[Any]] = np.float32) -> Array:
    """`values` as an array of `shape` (None: any); ValueError if they are not."""
    array = np.array(values, dtype=dtype)
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"expected shape {shape}, found {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("non-finite numbers")
    return array


def _truth(options: Mapping[str, str], name: str) -> bool:
    text = options.get(name, "false")
    if text not in ("true", "false"):
        raise ValueError(f"Option {name} of dataset 'tabletop' is true or false, got {text!r}.")
    return text == "true"


def _whole(options: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"Option {name} of dataset 'tabletop' is a whole number of at least {least}, got {text!r}.")
    return int(text)
