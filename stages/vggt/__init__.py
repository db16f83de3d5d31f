"""VGGT: cameras and depth from one or more images (Wang et al., CVPR 2025)."""

from stages.vggt.blocks import Block
from stages.vggt.config import VGGT_1B, VGGT_SMALL, VGGT_TINY, VGGTConfig
from stages.vggt.encoder import VGGTEncoder, VGGTGeometry
from stages.vggt.init import init_random
from stages.vggt.model import VGGT, build_vggt

__all__ = [
    "VGGT",
    "VGGT_1B",
    "VGGT_SMALL",
    "VGGT_TINY",
    "Block",
    "VGGTConfig",
    "VGGTEncoder",
    "VGGTGeometry",
    "build_vggt",
    "init_random",
]
