"""How far VGGT's depth and cameras are from the simulator's, by kind of camera, frame by frame and in windows."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data_specs.datasets import FrameSampling
from pipeline.bench.table import Table, columns_of
from pipeline.config import ExtractRecipe, RequestError
from pipeline.devices import choose_device
from pipeline.extract.models import load_models
from pipeline.sim.episode import demonstrate
from pipeline.sim.ssv2 import VIDEOS, video_id, write_clip
from pipeline.sources.decode import decode_video
from pipeline.train.frozen.depth_error import mean_error, window_errors
from pipeline.train.frozen.filming import FPS, FRAMES, Film, Way, film, shoot
from pipeline.train.frozen.windows import Windows, window
from stages.vggt import VGGT

Camera = Way | Literal["video"]
CAMERAS: tuple[Camera, ...] = ("standing", "video", "swaying", "wrist", "roaming")
Predict = Callable[[Windows], tuple[Tensor, Tensor]]


def bench_geometry(recipe: ExtractRecipe, *, clips: int, seed: int) -> Table:
    """Errors of the recipe's VGGT on `clips` films a camera, beside what knows nothing of the picture.

    `video` is `standing` through a VP9 file of 320x240, as `cla extract` reads it. `mean map` is the mean depth map of
    the judged films themselves: the best that a single map can do. Poses are those of cameras at rest there.
    """
    vggt = load_models(recipe, choose_device("cpu")).vggt
    if vggt is None:
        raise RequestError(f"Recipe {recipe.name} takes its geometry from sensors: name one with geometry.source=vggt.")
    rows: list[dict[str, Any]] = []
    for camera, kind, windows in _judged(clips, seed):
        for name, predict in ((recipe.vggt.weights, _by_model(vggt.vggt)), ("mean map", _by_mean_map(windows))):
            error = mean_error([window_errors(*predict(w), w) for w in windows])
            rows.append({"camera": camera, "frames": kind, "from": name, **vars(error)})
    columns, values = columns_of(rows)
    return Table(
        title=f"cla bench geometry: recipe {recipe.name}, {clips} films a camera, seed {seed}",
        columns=columns,
        rows=values,
        notes=(
            "abs_rel, delta (share within 1.25): depth after one scale a window, the ratio of medians",
            "rotation (degrees), translation (cm): of the cameras after the first against it; view: angle (degrees)",
        ),
    )


def _judged(clips: int, seed: int) -> Iterator[tuple[str, str, list[Windows]]]:
    for camera in CAMERAS:
        films = [_film(camera, seed, index) for index in range(clips)]
        yield camera, "single", [window(f, [len(f.rgb) // 2]) for f in films]
        yield camera, "window", [window(f, range(len(f.rgb))) for f in films]


def _film(camera: Camera, seed: int, index: int) -> Film:
    if camera != "video":
        return film(seed, index, way=camera)
    episode = demonstrate(seed, index)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / VIDEOS / f"{video_id(seed, index)}.webm"
        path.parent.mkdir()
        write_clip(Path(folder), episode)
        rgb, time = decode_video(episode.key, path, FrameSampling(fps=FPS, max=FRAMES))
    return replace(shoot(episode, time), rgb=rgb)


def _by_model(vggt: VGGT) -> Predict:
    @torch.inference_mode()
    def predict(truth: Windows) -> tuple[Tensor, Tensor]:
        out = vggt(truth.images, ("pose_enc", "depth"))
        return out["depth"].squeeze(-1), out["pose_enc"]

    return predict


def _by_mean_map(windows: list[Windows]) -> Predict:
    depth_HW = torch.cat([w.depth.flatten(0, 1) for w in windows]).mean(0)
    view = torch.cat([w.pose.flatten(0, 1) for w in windows]).mean(0)[7:]

    def predict(truth: Windows) -> tuple[Tensor, Tensor]:
        at_rest = torch.cat((view.new_tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), view))
        return depth_HW.expand_as(truth.depth), at_rest.expand_as(truth.pose)

    return predict
