"""What both versions of LeRobot's format share: features, videos, statistics, and the writing of an episode's part.

Row i of an episode is what was seen at i / 20 s with the action that leads on; what is seen after the last action has
no row. `observation.state` and `action` are those of `pipeline.sim.world`. Cameras are videos,
`observation.images.agent` and `observation.images.wrist`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from data_specs.arrays import Array
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.plan import Plan
from pipeline.sim.world import ACTION_DIM, STATE_DIM

if TYPE_CHECKING:
    from av.video.stream import VideoStream

VIEWS, SIZES = ("agent", "wrist"), (224, 224)
ENCODERS = ("libx264", "libopenh264", "libsvtav1", "libx265")
"""H.264 where the installed PyAV can write it, else what it can write of LeRobot's codecs."""
CHUNKS_SIZE = 1000
_STATE_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "left_finger", "right_finger"]
_ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
_COUNTERS = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}


def camera_key(view: str) -> str:
    """The feature of a camera."""
    return f"observation.images.{view}"


def prepare(plan: Plan) -> None:
    """Make `meta` first: it tells a recorder's folders from those of others."""
    for folder in ("meta", ".parts"):
        (plan.out / folder).mkdir()


def write(plan: Plan, index: int) -> dict[str, Any]:
    """Write the videos and the robot's arrays of one episode into `plan.parts`; what `finish` needs to know of it."""
    episode = plan.episode(index)
    steps = len(episode.action) - 1
    stats = {}
    for view in plan.views:
        pictures = [episode.picture(float(t), view, plan.height, plan.width).rgb for t in episode.time[:-1]]
        encode_video(part(plan, index, view), pictures, CONTROL_HZ)
        stats[camera_key(view)] = picture_stats(pictures)
    with part(plan, index).open("wb") as file:
        np.savez(file, state=episode.state[:-1], action=episode.action[:-1])
    return {"task": episode.scene.instruction, "length": steps, "stats": stats}


def part(plan: Plan, index: int, view: str | None = None) -> Path:
    """The video of a view of an episode, or its arrays, before they are put in their place."""
    return plan.parts / (f"{index:06d}.npz" if view is None else f"{index:06d}-{view}.mp4")


def features(plan: Plan, codec: str) -> dict[str, Any]:
    """`features` of `meta/info.json`."""
    video = {
        "video.height": plan.height,
        "video.width": plan.width,
        "video.codec": codec,
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": CONTROL_HZ,
        "video.channels": 3,
        "has_audio": False,
    }
    shape = [plan.height, plan.width, 3]
    return {
        "observation.state": {"dtype": "float32", "shape": [STATE_DIM], "names": _STATE_NAMES},
        "action": {"dtype": "float32", "shape": [ACTION_DIM], "names": _ACTION_NAMES},
        **{
            camera_key(view): {
                "dtype": "video",
                "shape": shape,
                "names": ["height", "width", "channels"],
                "info": video,
            }
            for view in plan.views
        },
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _COUNTERS.items()},
    }


def columns(plan: Plan, rows: Sequence[Mapping[str, Any]], tasks: Mapping[str, int], index: int) -> dict[str, Array]:
    """The table of episode `index` by column, without pictures."""
    with np.load(part(plan, index)) as arrays:
        state, action = arrays["state"], arrays["action"]
    length = rows[index]["length"]
    first = sum(row["length"] for row in rows[:index])
    count = np.arange(length, dtype=np.int64)
    return {
        "observation.state": state,
        "action": action,
        "timestamp": (count / CONTROL_HZ).astype(np.float32),
        "frame_index": count,
        "episode_index": np.full(length, index, dtype=np.int64),
        "index": count + first,
        "task_index": np.full(length, tasks[rows[index]["task"]], dtype=np.int64),
    }


def as_table(tables: Sequence[Mapping[str, Array]]) -> Any:
    """Episodes one after the other as an Arrow table."""
    import pyarrow

    out = {}
    for name in tables[0]:
        values = np.concatenate([table[name] for table in tables])
        flat = pyarrow.array(values.reshape(-1))
        out[name] = flat if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pyarrow.table(out)


def task_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The number of each task, in the order of its first episode."""
    return {task: number for number, task in enumerate(dict.fromkeys(row["task"] for row in rows))}


def array_stats(values: Array) -> dict[str, list[Any]]:
    """LeRobot's statistics of [T] or [T,D], each with a number a dimension."""
    table = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0)}
    return {**{name: value.tolist() for name, value in found.items()}, "count": [len(table)]}


def picture_stats(pictures: Sequence[Array]) -> dict[str, Any]:
    """LeRobot's statistics of pictures: of each channel in [0, 1], shaped [3,1,1]."""
    stats = array_stats(np.stack(pictures).reshape(-1, 3) / 255)
    return {
        **{name: [[[number]] for number in values] for name, values in stats.items() if name != "count"},
        "count": [len(pictures)],
    }


def pooled_stats(stats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of all episodes together, from each one's."""
    every = list(stats)
    count = np.array([s["count"][0] for s in every], dtype=np.float64)
    low, high, mean, std = (np.array([s[name] for s in every]) for name in ("min", "max", "mean", "std"))
    weight = (count / count.sum()).reshape(-1, *(1,) * (mean.ndim - 1))
    centre = (weight * mean).sum(0)
    spread = np.sqrt((weight * (std**2 + (mean - centre) ** 2)).sum(0))
    found = {"min": low.min(0), "max": high.max(0), "mean": centre, "std": spread}
    return {**{name: value.tolist() for name, value in found.items()}, "count": [int(count.sum())]}


def encoder() -> str:
    """The first of `ENCODERS` that the installed PyAV has; RuntimeError for none."""
    import av

    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name
    raise RuntimeError(f"This PyAV can encode none of {', '.join(ENCODERS)}: install av from its wheel.")


def encode_video(path: Path, pictures: Sequence[Array], fps: int, *, codec: str | None = None) -> None:
    """`pictures` u1 [h,w,3] as an MP4 with a key frame every second frame, as LeRobot encodes. Equal bytes again."""
    import av
    from av.codec.context import Flags

    name = codec or encoder()
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = cast("VideoStream", container.add_stream(name, rate=fps))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "2", "bf": "0", **_SETTINGS.get(name, {})}
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= Flags.bitexact
        stream.codec_context.time_base = Fraction(1, fps)
        for k, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


_SETTINGS = {
    # x264's rate control with lookahead gave other bytes for the same small pictures, 17 times in 1,075 by what memory
    # held before; at a constant quantiser and without lookahead it did not in 1,790.
    "libx264": {
        "x264-params": "log-level=error:threads=1:qp=20:scenecut=0:rc-lookahead=0:weightp=0:mbtree=0",
    },
    "libx265": {"crf": "20", "x265-params": "log-level=error:pools=1:frame-threads=1"},
    "libsvtav1": {"crf": "20", "preset": "10", "svtav1-params": "lp=1"},
}


def codec_name(path: Path) -> str:
    """What `meta/info.json` calls the codec of a video: h264, av1, hevc."""
    import av

    with av.open(str(path)) as container:
        return str(container.streams.video[0].codec_context.codec.canonical_name)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=4, ensure_ascii=False))
    unfinished.rename(path)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a line of JSON for each of `rows`."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
