"""Concerto: the frozen point cloud encoder (PTv3 in encoder mode)."""

from stages.concerto.config import BASE, IGNORED_KEYS, LARGE, SMALL, TINY, ConcertoConfig
from stages.concerto.encoder import ConcertoEncoder, ConcertoFeatures, Rows
from stages.concerto.init import init_random
from stages.concerto.model import Level, Plan, PointTransformerV3, build_concerto
from stages.concerto.sparse import SubmanifoldConv3d

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
    "Plan",
    "PointTransformerV3",
    "Rows",
    "SubmanifoldConv3d",
    "build_concerto",
    "init_random",
]
