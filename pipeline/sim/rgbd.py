"""The `rgbd` layout: recorded clips of the tabletop world, lossless.

    dataset.json                              written last: its presence says that the recording is whole
    clips/KEY/clip.json                       instruction, times, cameras, state, action, success
    clips/KEY/VIEW/rgb/000000.png             8-bit sRGB
    clips/KEY/VIEW/depth/000000.png           16-bit, metres = value / 10,000 along the optical axis, 0: no reading
    clips/KEY/VIEW/segment/000000.png         8-bit, the number of a name in clip.json's `segments`

Times, cameras, state and action have a row a frame. A recording of fewer than 20 frames a second (`--fps`) keeps the
action of the control step that starts at the frame, `action_sum`: the sum of all actions before it, whether their
frames were recorded or not, and `trajectory`: state and action of all K control steps, with the step that each frame
was seen at (K: after the last). Where every step is a frame, these follow from `action` and are not written. clip.json
and dataset.json say which episodes were seen by a moving camera (`camera_motion`) and among distractors
(`distractors`), and with how much noise on what was executed (`perturb`): then `action` is what the expert wanted and
`action_sum`, always written, adds up what was done.

Depth is 16-bit PNG because the sensor counts in tenths of a millimetre: nothing is lost, any tool reads it, and a
frame takes a third of its float32 array. Floats in JSON are shortest exact decimals, so they too come back bit for bit.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_specs.arrays import Array
from pipeline.foreign import BadJson, read_json
from pipeline.foreign_images import BadPicture, picture
from pipeline.sim.episode import Episode, episode_split
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.plan import Plan
from pipeline.sim.render import decode_depth, encode_depth

MAX_INDEX = 256 << 20
"""Bytes of dataset.json: 200 a clip."""

FORMAT, VERSION = "tabletop-rgbd", 1
INDEX = "dataset.json"
CLIPS = "clips"
VIEWS, SIZES = ("agent",), (224, 224)


def prepare(plan: Plan) -> None:
    """As in `pipeline.sim.plan.Format`."""
    (plan.out / CLIPS).mkdir()


def write(plan: Plan, index: int) -> dict[str, Any]:
    """As in `pipeline.sim.plan.Format`."""
    return write_clip(plan.out, plan.episode(index), plan.views, plan.height, plan.width, plan.fps)


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """As in `pipeline.sim.plan.Format`."""
    write_index(
        plan.out,
        rows,
        seed=plan.seed,
        tasks=plan.task_names,
        views=plan.views,
        height=plan.height,
        width=plan.width,
        fps=plan.fps,
        disturbances=[name for name in ("camera_motion", "distractors") if getattr(plan, name)],
        perturb=plan.perturb,
    )


def write_clip(
    out: Path, episode: Episode, views: Sequence[str], height: int, width: int, fps: float = CONTROL_HZ
) -> dict[str, Any]:
    """Write one clip under `out`, whole or not at all; its row for `dataset.json`. Only what is seen is rendered."""
    final = out / CLIPS / episode.key
    unfinished = final.with_name(f".{episode.key}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    seen = episode.moments(fps)
    times = episode.time[seen]
    cameras: dict[str, Any] = {}
    for view in views:
        for kind in ("rgb", "depth", "segment"):
            (unfinished / view / kind).mkdir(parents=True)
        intrinsics, extrinsics = [], []
        for i, time in enumerate(times):
            picture = episode.picture(float(time), view, height, width)
            _write_png(unfinished / view / "rgb" / _frame(i), picture.rgb)
            _write_png(unfinished / view / "depth" / _frame(i), encode_depth(picture.depth))
            _write_png(unfinished / view / "segment" / _frame(i), picture.segment)
            intrinsics.append(picture.intrinsic.tolist())
            extrinsics.append(picture.extrinsic.tolist())
        cameras[view] = {"intrinsic": intrinsics, "extrinsic": extrinsics}
    row = {
        "key": episode.key,
        "split": episode_split(episode.index),
        "instruction": episode.scene.instruction,
        "task": episode.scene.task.name,
        "frames": len(times),
    }
    clip = {
        **row,
        "seed": episode.seed,
        "index": episode.index,
        "attempt": episode.attempt,
        "success": episode.success,
        "fps": fps,
        "time": times.tolist(),
        "segments": episode.renderer.segments,
        "state": episode.state[seen].tolist(),
        "action": episode.action[seen].tolist(),
        "is_pad": episode.is_pad[seen].tolist(),
        "cameras": cameras,
    }
    if fps != CONTROL_HZ or episode.perturb:
        clip["action_sum"] = episode.action_sum[seen].tolist()
    if fps != CONTROL_HZ:
        whole = episode.trajectory(seen)
        clip["trajectory"] = {name: getattr(whole, name).tolist() for name in ("state", "action", "step")}
    if episode.perturb:
        clip["perturb"] = episode.perturb
    if episode.camera_motion is not None:
        clip["camera_motion"] = episode.camera_motion.kind
    if episode.distractors:
        clip["distractors"] = [distractor.name for distractor in episode.distractors]
    (unfinished / "clip.json").write_text(json.dumps(clip))
    unfinished.rename(final)
    return row


def write_index(
    out: Path,
    rows: Sequence[dict[str, Any]],
    *,
    seed: int,
    tasks: str,
    views: Sequence[str],
    height: int,
    width: int,
    fps: float = CONTROL_HZ,
    disturbances: Sequence[str] = (),
    perturb: float = 0.0,
) -> None:
    """Write `dataset.json`, the recording's last file. `disturbances` are the options that were on."""
    index = {
        "format": FORMAT,
        "version": VERSION,
        "seed": seed,
        "tasks": tasks,
        "views": list(views),
        "height": height,
        "width": width,
        "fps": fps,
        **dict.fromkeys(disturbances, True),
        **({"perturb": perturb} if perturb else {}),
        "depth_units_per_metre": 10_000,
        "clips": list(rows),
    }
    unfinished = out / f".{INDEX}.tmp"
    unfinished.write_text(json.dumps(index, indent=1))
    unfinished.rename(out / INDEX)


def read_index(root: Path) -> dict[str, Any]:
    """`dataset.json` under `root`; ValueError where there is none, or it is of another kind or version."""
    path = root / INDEX
    how = "Record one with `cla sim record --format rgbd --clips 20 --out DIR`."
    if not path.is_file():
        if (root / CLIPS).is_dir():
            raise ValueError(f"{root} holds a recording that was stopped: it has no {INDEX}. {how}")
        raise ValueError(f"{root} holds no rgbd recording: it has no {INDEX}. {how}")
    try:
        index = read_json(path, limit=MAX_INDEX)
    except BadJson as error:
        raise ValueError(f"{path} {error}. {how}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). {how}") from None
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} is not of format {FORMAT!r} version {VERSION}. {how}")
    missing = {"seed", "views", "height", "width", "clips"} - index.keys()
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}. {how}")
    lists = (index["views"], index["clips"])
    if not all(isinstance(item, list) for item in lists) or not all(isinstance(v, str) for v in index["views"]):
        raise ValueError(f"{path} has no list of views by name and of clips. {how}")
    return index


def read_clip_json(folder: Path) -> dict[str, Any]:
    """A clip's `clip.json`; OSError or ValueError if it cannot be read."""
    clip = read_json(folder / "clip.json")
    if not isinstance(clip, dict):
        raise ValueError("clip.json is not an object")
    return clip


def read_frame(folder: Path, view: str, index: int) -> tuple[Array, Array]:
    """Colour u1 [H,W,3] and depth f4 [H,W] of frame `index`; OSError or ValueError if they cannot be read."""
    rgb = read_rgb(folder, view, index)
    counts = _read_png(folder / view / "depth" / _frame(index), np.uint16)
    return rgb, decode_depth(counts)


def read_rgb(folder: Path, view: str, index: int) -> Array:
    """Colour u1 [H,W,3] of frame `index`; OSError or ValueError if it cannot be read."""
    return _read_png(folder / view / "rgb" / _frame(index), np.uint8)


def _frame(index: int) -> str:
    return f"{index:06d}.png"


def _write_png(path: Path, pixels: Array) -> None:
    Image.fromarray(pixels).save(path, compress_level=4)


def _read_png(path: Path, dtype: type[np.generic]) -> Array:
    try:
        with picture(path, ("PNG",)) as image:
            pixels = np.asarray(image)
    except BadPicture as error:
        raise ValueError(f"{path.name} {error}") from None
    if pixels.dtype == np.int32 and dtype is np.uint16:  # how older Pillows open 16-bit files
        pixels = pixels.astype(np.uint16)
    if pixels.dtype != dtype or pixels.shape[2:] != ((3,) if dtype is np.uint8 else ()) or pixels.ndim < 2:
        raise ValueError(f"{path.name} holds {pixels.dtype} {pixels.shape}")
    return pixels
