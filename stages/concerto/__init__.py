"""Concerto: the frozen point cloud encoder (PTv3 in encoder mode)."""

from stages.concerto.config import BASE, IGNORED_KEYS, LARGE, SMALL, TINY, ConcertoConfig
from stages.concerto.encoder import ConcertoEncoder, ConcertoFeatures
from stages.concerto.init import init_random
from stages.concerto.model import Level, PointTransformerV3, build_concerto

__all__ = [
    "BASE",
    "IGNORED_KEYS",
    "LARGE",
    "SMALL",
    "TINY",
    "ConcertoConfig",
    "ConcertoEncoder",
    "ConcertoFeatures",
    "Level",
    "PointTransformerV3",
    "build_concerto",
    "init_random",
]
