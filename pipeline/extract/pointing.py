"""What each clip's end says of its start: the thing that is handled and its goal, packed as `data_specs.pointing`."""

import numpy as np
import torch

from data_specs.arrays import Array
from data_specs.pointing import POINTING_NAME
from data_specs.records import BadClip, Clip
from pipeline.extract.clouds import Lifted
from stages.hindsight import hindsight_targets


def pack_pointing(clip: Clip, lifted: Lifted, margin: float) -> dict[str, Array]:
    """The array of `data_specs.pointing`, of a whole demonstration. The state must begin with the grip point, in the
    world of the depth. BadClip for a clip without the robot's way.
    """
    way = clip.trajectory
    if way is None or len(way.state) == 0 or way.state.shape[1] < 3:
        raise BadClip(
            clip.key,
            "has no control steps with a grip position to take robot.pointing=true from; for data without it "
            "robot.pointing=false",
        )
    device, geometry = lifted.xyz.device, lifted.geometry
    grip = torch.from_numpy(way.state[:, :3].astype(np.float32)).to(device)
    seen = torch.from_numpy(np.minimum(way.step, len(grip) - 1)).to(device)  # at the very end the hand is at rest
    first, last = (lifted.xyz[i][geometry.depth[i] > 0] for i in (0, -1))  # every pixel: things are small
    targets = hindsight_targets(
        first,
        last,
        grip[seen],
        grip[-1],
        geometry.depth,
        geometry.intrinsic,
        geometry.extrinsic,
        margin=margin,
    )
    return {POINTING_NAME: targets.cpu().numpy()}
