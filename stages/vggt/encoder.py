"""The geometry of frames as the rest of the project takes it: depth, camera and points from RGB.

Shape legend
    B  frames    S  frames of a window    H, W  sides of the image    N  tokens of a frame    C  width
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stages.constants import constant
from stages.points import unproject
from stages.vggt.model import CAMERA, DEPTH, POINTS, VGGT

PointSource = Literal["depth", "head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class VGGTGeometry:
    """What VGGT says about B frames, float32.

    Attributes:
        depth_map: [B,H,W], along the optical axis, positive, without metric scale.
        depth_conf: [B,H,W], at least 1.
        intrinsic: [B,3,3], pixels; not finite where the field of view is 0 or not finite: such a frame is bad data.
        extrinsic: [B,4,4], OpenCV camera-from-world, homogeneous.
        point_map: [B,H,W,3], world coordinates; the world is the camera of the first frame of a window, as VGGT
            learnt it, and of each frame on its own otherwise.
        point_conf: [B,H,W], at least 1: that of the points, so of the depth unless the point head ran.
        tokens: [B,N,2C] last tokens of the aggregator (camera, 4 registers, patches), or None if not asked for.
    """

    depth_map: Tensor
    depth_conf: Tensor
    intrinsic: Tensor
    extrinsic: Tensor
    point_map: Tensor
    point_conf: Tensor
    tokens: Tensor | None = None

    def __getitem__(self, frames: slice) -> "VGGTGeometry":
        """That of some of the frames."""
        return VGGTGeometry(
            depth_map=self.depth_map[frames],
            depth_conf=self.depth_conf[frames],
            intrinsic=self.intrinsic[frames],
            extrinsic=self.extrinsic[frames],
            point_map=self.point_map[frames],
            point_conf=self.point_conf[frames],
            tokens=None if self.tokens is None else self.tokens[frames],
        )


class VGGTEncoder(nn.Module):
    """A frozen VGGT behind the interface of the extraction: RGB → `VGGTGeometry`.

    Args:
        vggt: the model, with its weights; put into eval mode, gradients off.
        point_source: "depth" unprojects the depth with the camera, which is usually the better of the two (VGGT,
            section 4.3) and leaves the point head out; "head" runs the point head.
        tokens: also return the last tokens of the aggregator.
        frames_per_run: how many frames `forward` runs at a time. Sums of floats depend in their last bits on the
            size of the matrices (some 1e-6 here), so 1 makes the bytes of a frame independent of the batch it came
            in; None runs all frames together.

    Raises:
        ValueError: for another point source or number of frames.
    """

    def __init__(
        self,
        vggt: VGGT,
        *,
        point_source: PointSource = "depth",
        tokens: bool = False,
        frames_per_run: int | None = None,
    ) -> None:
        super().__init__()
        if frames_per_run is not None and frames_per_run < 1:
            raise ValueError(f"frames_per_run is {frames_per_run}, expected at least 1, or None for all frames")
        if point_source not in get_args(PointSource):
            raise ValueError(f"point_source is {point_source!r}, expected one of {', '.join(get_args(PointSource))}")
        self.vggt = vggt.eval().requires_grad_(False)
        self.point_source = point_source
        self.tokens = tokens
        self.frames_per_run = frames_per_run

    @torch.inference_mode()
    def forward(self, rgb_B3HW: Tensor) -> VGGTGeometry:
        """Frames [B,3,H,W] in [0,1], each on its own: its scale and its world are its own.

        Raises:
            ValueError: for another shape, or sides that are no multiples of the patch size.
        """
        _check_frames(rgb_B3HW)
        step = self.frames_per_run or len(rgb_B3HW)
        runs = [self._run(rgb_B3HW[start : start + step, None]) for start in range(0, len(rgb_B3HW), step)]
        return self._geometry({name: torch.cat([run[name] for run in runs]) for name in runs[0]})

    @torch.inference_mode()
    def encode_window(self, rgb_S3HW: Tensor) -> VGGTGeometry:
        """Frames of one clip [S,3,H,W] in [0,1], jointly: one scale, and the world of the first frame.

        Raises:
            ValueError: as `forward`.
        """
        _check_frames(rgb_S3HW)
        return self._geometry(self._run(rgb_S3HW[None]))

    @torch.inference_mode()
    def encode_windows(self, rgb_WS3HW: Tensor) -> VGGTGeometry:
        """W windows of S frames each [W,S,3,H,W] at once, each as in `encode_window`: the geometry of W * S frames.

        Raises:
            ValueError: for another shape, or sides that are no multiples of the patch size.
        """
        return self._geometry(self._run(rgb_WS3HW))

    def _run(self, images_BS3HW: Tensor) -> dict[str, Tensor]:
        """The outputs of the model by frame: [B*S,...]."""
        want: tuple[str, ...] = (*CAMERA, *DEPTH)
        want += POINTS if self.point_source == "head" else ()
        want += ("last_tokens",) if self.tokens else ()
        return {name: value.flatten(0, 1) for name, value in self.vggt(images_BS3HW, want).items()}

    def _geometry(self, out: Mapping[str, Tensor]) -> VGGTGeometry:
        depth_BHW = out["depth"].squeeze(-1)
        if self.point_source == "head":
            points, conf = out["point_map"], out["point_conf"]
        else:
            points, conf = unproject(depth_BHW, out["intrinsic"], out["extrinsic"]), out["depth_conf"]
        bottom = constant((0.0, 0.0, 0.0, 1.0), depth_BHW.device, out["extrinsic"].dtype).expand(len(depth_BHW), 1, 4)
        return VGGTGeometry(
            depth_map=depth_BHW,
            depth_conf=out["depth_conf"],
            intrinsic=out["intrinsic"],
            extrinsic=torch.cat((out["extrinsic"], bottom), dim=1),
            point_map=points,
            point_conf=conf,
            tokens=out.get("last_tokens"),
        )


def _check_frames(rgb: Tensor) -> None:
    if rgb.ndim != 4 or rgb.shape[1] != 3 or len(rgb) == 0:
        raise ValueError(f"frames have shape {list(rgb.shape)}, expected [frames, 3, height, width]")
