"""The recipes by name: what a user gets when nothing else is said, and why."""

from typing import TYPE_CHECKING

from data_specs.datasets import FrameSampling
from pipeline.config import (
    ConcertoSection,
    ExtractRecipe,
    GeometrySection,
    PointsSection,
    RequestError,
    RobotSection,
    StoreSection,
    TextSection,
    VggtSection,
    VisionSection,
    suggest,
)

if TYPE_CHECKING:
    from pipeline.train.laq_recipe import LaqRecipe
    from pipeline.train.policy_recipe import PolicyRecipe

EXTRACT: dict[str, ExtractRecipe] = {
    # The description's numbers: VGGT-1B, Concerto base, 224 pixels, 8,192 points.
    "full": ExtractRecipe(name="full"),
    # A VGGT on a ViT-S and a Concerto of the released small size: every kind of layer of `full`, much quicker. No
    # VGGT of this size was released, so both are random until you name weights (concerto_small.pth fits).
    "small": ExtractRecipe(
        name="small",
        frames=FrameSampling(max=8),
        geometry=GeometrySection(source="vggt_window", window=8),
        vggt=VggtSection(model="small", weights="random:0"),
        concerto=ConcertoSection(model="small", weights="random:0"),
        store=StoreSection(shard_mb=64.0),
    ),
    # For a CPU, the demo and the tests: models of a size that nobody released, with weights of ours (pipeline/weights).
    "tiny": ExtractRecipe(
        name="tiny",
        frames=FrameSampling(max=8),
        geometry=GeometrySection(source="vggt_window", window=8),
        vggt=VggtSection(model="tiny", weights="builtin"),
        concerto=ConcertoSection(model="tiny", weights="builtin"),
        store=StoreSection(shard_mb=4.0),
    ),
    # The tabletop world in metres, from its sensors, for policies: the same box in every frame, so that a metre is a
    # metre and a place is a place, and what a policy sees live is what it was trained on. Things stand in x -0.14 to
    # 0.15, y -0.21 to 0.21, the hand comes up to 0.3; Concerto's coarse cells (16 steps of 0.02) are 2.8 cm.
    "rgbd_tiny": ExtractRecipe(
        name="rgbd_tiny",
        frames=FrameSampling(fps=5.0, max=0),
        geometry=GeometrySection(source="sensor"),
        concerto=ConcertoSection(model="tiny", weights="builtin"),
        points=PointsSection(
            normalise="fixed", box_centre=(0.0, 0.0, 0.155), box_scale=0.32 / 0.028, crop=(0.25, 0.32, 0.175)
        ),
        store=StoreSection(shard_mb=16.0),
        robot=RobotSection(chunk=20, live=True, pointing=True),
        text=TextSection(weights="random:0"),
    ),
    # For robot data without depth (LIBERO, LeRobot, ALOHA): VGGT-1B on each frame alone, since a policy has no frames
    # to come, so that each frame has a space of its own. A hundred control steps from each frame on are ACT's chunk.
    # About 1.1 MB a frame: 0.39 of DINOv2, 0.53 of VGGT's aggregator; `vision.towers= vision.vggt=false` leaves 0.15.
    "robot_full": ExtractRecipe(
        name="robot_full",
        frames=FrameSampling(fps=5.0, max=0),
        geometry=GeometrySection(source="vggt"),
        points=PointsSection(per="frame"),
        robot=RobotSection(chunk=100, live=True),
        text=TextSection(weights="Qwen/Qwen3-0.6B-Base"),
        vision=VisionSection(towers="dinov2=facebook/dinov2-base", vggt=True),
    ),
    # The same in small, for a CPU and for tests: text and DINOv2 are RANDOM, the others have weights of ours.
    "robot_tiny": ExtractRecipe(
        name="robot_tiny",
        frames=FrameSampling(fps=5.0, max=0),
        geometry=GeometrySection(source="vggt"),
        vggt=VggtSection(model="tiny", weights="builtin"),
        concerto=ConcertoSection(model="tiny", weights="builtin"),
        points=PointsSection(per="frame"),
        store=StoreSection(shard_mb=16.0),
        robot=RobotSection(chunk=20, live=True),
        text=TextSection(weights="random:0"),
        vision=VisionSection(towers="dinov2=random:0", vggt=True),
    ),
}


LAQ = ("laq_full", "laq_tiny", "laq_tiny_labels")
"""Names of the recipes of `cla train laq`; `pipeline.train.laq_recipe` has them, with the model's config, and torch."""


VLA = (
    "vla_simple",
    "vla_dinov2",
    "vla_full",
    "vla_3d",
    "act",
    "tabletop_vla_simple",
    "tabletop_vla_dinov2",
    "tabletop_vla_full",
    "tabletop_vla_3d",
    "tabletop_act",
)
"""Names of the recipes of `cla train vla`; `pipeline.train.vla_recipe` has them."""


def vla_recipe(name: str) -> "PolicyRecipe":
    """The recipe of that name; RequestError with the choices otherwise."""
    if name not in VLA:
        raise RequestError(f"Unknown recipe {name!r}.{suggest(name, VLA)} There are: {', '.join(VLA)}.")
    from pipeline.train.vla_recipe import VLA_RECIPES

    return VLA_RECIPES[name]


def laq_recipe(name: str) -> "LaqRecipe":
    """The recipe of that name; RequestError with the choices otherwise."""
    if name not in LAQ:
        raise RequestError(f"Unknown recipe {name!r}.{suggest(name, LAQ)} There are: {', '.join(LAQ)}.")
    from pipeline.train.laq_recipe import LAQ_RECIPES

    return LAQ_RECIPES[name]


def extract_recipe(name: str) -> ExtractRecipe:
    """The recipe of that name; RequestError with the choices otherwise."""
    if name not in EXTRACT:
        raise RequestError(f"Unknown recipe {name!r}.{suggest(name, EXTRACT)} There are: {', '.join(EXTRACT)}.")
    return EXTRACT[name]
