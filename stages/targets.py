"""What the decoder has to predict of the later frame, cell by cell, and how wrong it is.

Shape legend: B frames, Q = 196 cells, C channels of the store, d numbers of a target in a cell or a whole frame.
All targets are fixed functions of the stored frame: nothing the model learns can make them easier.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from data_specs.actions import ACTION_COLUMN, ACTION_NAME
from data_specs.batches import FrameBatch
from data_specs.motion import STATISTICS_COLUMN, STATISTICS_NAME, STATISTICS_WIDTH
from stages.patches import PATCH, patchify, unpatchify
from stages.raster import raster_coords, raster_features

Values = dict[str, Tensor]
"""A target's values by its name: [B,Q,d] of the cells, [B,1,d] of a whole frame."""


EXTRA_OF_WHOLE = {"motion": STATISTICS_NAME, "action": ACTION_NAME}
"""The entry of `FrameBatch.extra` that a target of a whole frame is."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """Weight of each target in the loss, 0 for none.

    Attributes:
        features: frozen features on the grid, as standardised by the model.
        coords: mean coordinates of the cells, in the normalised space.
        pixels: the 224x224 frame, in [0,1].
        motion: statistics of the points that move (`data_specs.motion`), of the whole frame: motion in 3D itself.
        action: the action accumulated before the frame, where the batch has it: a little supervision.
    """

    features: float = 1.0
    coords: float = 0.0
    pixels: float = 0.0
    motion: float = 1.0
    action: float = 0.0

    def weights(self) -> dict[str, float]:
        """The targets that count, by name. ValueError for negative weights, or when none counts."""
        weights: dict[str, float] = asdict(self)
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"target weights are {weights}: expected none under 0 and at least one above")
        return {name: weight for name, weight in weights.items() if weight}


class Targets(nn.Module):
    """Targets of frames and the error of predictions; parameter-free.

    Attributes:
        cell_widths: numbers a cell of each target of the cells. whole_widths: of each target of the whole frame.
        columns: of the store that they are made from.
    """

    def __init__(self, config: TargetConfig, channels: int, actions: int) -> None:
        super().__init__()
        self.weights = config.weights()
        if "action" in self.weights and not actions:
            raise ValueError("targets.action asks for actions, and the model has none: set model.actions")
        cells = {"features": channels, "coords": 3, "pixels": PATCH * PATCH * 3}
        whole = {"motion": STATISTICS_WIDTH, "action": actions}
        self.cell_widths = {name: width for name, width in cells.items() if name in self.weights}
        self.whole_widths = {name: width for name, width in whole.items() if name in self.weights}
        read: dict[str, tuple[str, ...]] = {
            "features": ("tokens", "cells"),
            "coords": ("tokens", "cells"),
            "pixels": ("rgb",),
            "motion": (STATISTICS_COLUMN,),
            "action": (ACTION_COLUMN,),
        }
        self.columns = tuple(sorted({column for name in self.weights for column in read[name]}))

    @torch.no_grad()
    def forward(self, frames: FrameBatch) -> tuple[Values, Values]:
        """Values f4 [B,Q,d] (or [B,1,d]) by target, and where there is one, bool [B,Q] (or [B,1]) by target.

        A whole frame whose numbers are not finite (nothing moves, the action is not known) has none.
        """
        values, seen = {}, {}
        if "features" in self.cell_widths or "coords" in self.cell_widths:
            tokens, cells = frames.need_tokens(), frames.need_cells()
            mean, count = raster_features(tokens, cells)
            known = {"features": mean, "coords": raster_coords(tokens, cells)}
            for name in self.cell_widths.keys() & known.keys():
                values[name], seen[name] = known[name], count > 0
        if "pixels" in self.cell_widths:
            values["pixels"] = patchify(frames.need_pixels())
            seen["pixels"] = torch.ones(values["pixels"].shape[:2], dtype=torch.bool, device=values["pixels"].device)
        for name in self.whole_widths:
            numbers = frames.extra[EXTRA_OF_WHOLE[name]].float()[:, None]
            values[name], seen[name] = numbers.nan_to_num(), numbers.isfinite().all(-1)
        return {name: values[name] for name in self.weights}, seen

    def output(self, values: Values) -> Values:
        """Predicted values, the pixels put together: f4 [B,224,224,3] in [0,1]."""
        return {name: unpatchify(value) if name == "pixels" else value for name, value in values.items()}


def mean_square(predicted: Tensor, target: Tensor, seen_BQ: Tensor) -> Tensor:
    """Mean squared error [] over the cells that are seen, float32: the mean over the frames of each frame's own mean.

    So the error of a batch is the mean of the errors of its parts, however many processes share it.
    """
    weight = seen_BQ[..., None].float()
    error_B = ((predicted.float() - target).square() * weight).sum((1, 2))
    return (error_B / (weight.sum((1, 2)) * target.shape[-1]).clamp_min(1)).mean()
