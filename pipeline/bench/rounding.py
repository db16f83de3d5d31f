"""How far a recipe in bfloat16 is from the same in float32: depth, features of the same clouds, and of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_specs.records import BadClip, Clip
from pipeline.config import ExtractRecipe, RequestError
from pipeline.extract.clouds import CloudEncoder, Lifted, Started
from pipeline.extract.models import FrozenModels


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Mean and least cosine of corresponding features, and the L2 norm of all differences over that of the features."""

    cosine: float
    least_cosine: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`depth`: mean relative error. `same_clouds`: distinct features that Concerto alone makes differ, out of the same
    clouds. `points`: each pixel's feature after everything, where both keep the pixel: another depth may put a point
    into another cell, with another feature. `rows` of the two, all frames.
    """

    depth: float
    same_clouds: Distance
    points: Distance
    rows: tuple[int, int]

    def lines(self) -> Sequence[str]:
        """What it says, in words."""
        same, own = self.same_clouds, self.points
        return (
            f"bfloat16 beside float32: depth differs by {self.depth:.2%} (mean); features of the same clouds: cosine "
            f"{same.cosine:.5f} (mean), {same.least_cosine:.5f} (least), relative L2 {same.relative_l2:.2%}",
            f"after everything, point by point: cosine {own.cosine:.5f} (mean), {own.least_cosine:.3f} (least), "
            f"relative L2 {own.relative_l2:.2%}; {self.rows[1]} rows for {self.rows[0]}",
        )


def in_float32(recipe: ExtractRecipe) -> ExtractRecipe:
    """The recipe with nothing rounded and nothing compiled."""
    return recipe.model_copy(
        update={
            "vggt": recipe.vggt.model_copy(update={"dtype": "float32", "compile": False}),
            "concerto": recipe.concerto.model_copy(update={"dtype": "float32"}),
        }
    )


@torch.inference_mode()
def rounding(recipe: ExtractRecipe, models: FrozenModels, exact: FrozenModels, clips: Sequence[Clip]) -> Rounding:
    """Of some clips; `exact` are the models of the same recipe in float32. RequestError for a clip it rejects."""
    ours, theirs = CloudEncoder(recipe, models), CloudEncoder(in_float32(recipe), exact)
    start, truth = ours.start(clips), theirs.start(clips)
    expected, same, own = _all(theirs, truth), _all(ours, truth), _all(ours, start)
    pairs = [_by_pixel(a, b) for a, b in zip(expected, own, strict=True)]
    return Rounding(
        depth=float((start.geometry.depth / truth.geometry.depth - 1).abs().mean()),
        same_clouds=_distance(_rows(expected), _rows(same)),
        points=_distance(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])),
        rows=(len(_rows(expected)), len(_rows(own))),
    )


def _all(encoder: CloudEncoder, started: Started) -> list[Lifted]:
    out = []
    for lifted in encoder.encode(started):
        if isinstance(lifted, BadClip):
            raise RequestError(f"The recipe rejects a clip of the tabletop world: {lifted}.")
        out.append(lifted)
    return out


def _rows(clips: Sequence[Lifted]) -> Tensor:
    return torch.cat([feat for clip in clips for feat in clip.feats])


def _by_pixel(one: Lifted, other: Lifted) -> tuple[Tensor, Tensor]:
    """Features of the points that both keep, frame after frame."""
    pairs = []
    for a, b, feat_a, feat_b in zip(one.frames, other.frames, one.feats, other.feats, strict=True):
        pixels = one.xyz.shape[1] * one.xyz.shape[2]
        row = a.token.new_full((2, pixels), -1)
        row[0, a.pixel], row[1, b.pixel] = a.token, b.token
        row = row[:, (row >= 0).all(0)]
        pairs.append((feat_a[row[0]], feat_b[row[1]]))
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])


def _distance(exact_RC: Tensor, rounded_RC: Tensor) -> Distance:
    a, b = exact_RC.double(), rounded_RC.double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Distance(
        cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
        relative_l2=float((a - b).norm() / a.norm()),
    )
