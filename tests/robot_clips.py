"""Clips of a made-up robot: `moving_ball` with states, actions and an episode at its own rate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from clip_factory import moving_ball

from data_specs.datasets import ClipRef, DatasetSpec, FrameSampling
from data_specs.records import Clip, Trajectory

STEPS, STATE, ACTION, STRIDE = 11, 3, 2, 4


def trajectory(seed: int = 0, frames: int = 3, steps: int = STEPS) -> Trajectory:
    """An episode of `steps` control steps of which every fourth was seen."""
    rng = np.random.default_rng(seed)
    return Trajectory(
        state=rng.normal(size=(steps, STATE)).astype(np.float32),
        action=rng.normal(size=(steps, ACTION)).astype(np.float32),
        step=np.arange(frames) * STRIDE,
        hz=20.0,
    )


def robot_clip(key: str = "robot", frames: int = 3, size: int = 56, seed: int = 0, text: str = "push the ball") -> Clip:
    """A clip with depth, cameras and everything that a robot's dataset has."""
    way = trajectory(seed, frames)
    return replace(
        moving_ball(key, frames=frames, size=size),
        text=text,
        state=way.state[way.step],
        action=way.action[way.step],
        is_pad=np.zeros(frames, bool),
        trajectory=way,
    )


def with_wrist(clip: Clip) -> Clip:
    """The clip with a second camera of another resolution."""
    pictures = np.random.default_rng(len(clip.key)).integers(256, size=(len(clip), 20, 30, 3), dtype=np.uint8)
    return replace(clip, views={"wrist": pictures})


class RobotSource:
    """A dataset of `robot_clip`s for `pipeline.sources`; `spoil` clips are changed by the function of their key."""

    spec = DatasetSpec(
        name="robot", title="Made-up robot", splits=("train", "val"), where="Nowhere.", licence="none",
        needs_root=False, has_depth=True, state_dim=STATE, action_dim=ACTION,
    )  # fmt: skip

    def __init__(self, root: Path | None, split: str | None, options: Mapping[str, str]) -> None:
        self.count = int(options.get("clips", "3"))
        self.frames = int(options.get("frames", "3"))
        self.spoil = options.get("spoil", "")
        self.views = "views" in options

    def clips(self) -> Sequence[ClipRef]:
        return [ClipRef(key=f"robot-{i}", split="train", index=i) for i in range(self.count)]

    def read(self, ref: ClipRef, frames: FrameSampling) -> Clip:
        text = ("push the ball", "lift the ball", "push the ball")[ref.index % 3]
        clip = robot_clip(ref.key, self.frames, frames.size, seed=ref.index, text=text)
        if self.views:
            clip = with_wrist(clip)
        way = clip.trajectory
        assert way is not None
        if ref.index != 1 or not self.spoil:
            return clip
        if self.spoil == "dimension":
            return replace(clip, action=np.zeros((len(clip), ACTION + 1), np.float32))
        if self.spoil == "nan":
            action = way.action.copy()
            action[7] = np.nan
            return replace(clip, trajectory=replace(way, action=action))
        if self.spoil == "steps":
            return replace(clip, trajectory=replace(way, step=way.step + STEPS))
        if self.spoil == "text":
            return replace(clip, text=" ".join(["again"] * 200))
        assert self.spoil == "none", self.spoil
        return replace(clip, trajectory=None)
