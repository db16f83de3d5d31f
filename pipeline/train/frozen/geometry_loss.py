"""What VGGT is trained to minimise (Wang et al., CVPR 2025, section 3.4), without points and tracks.

Shape legend
    B  windows    S  frames of a window    H, W  sides of the image
"""

from torch import Tensor
from torch.nn import functional as F

ALPHA = 0.2
"""Weight of -log confidence: at the optimum the confidence is ALPHA / error, but at least 1."""
PLAIN = 5.0
"""Added to the confidence where it weights an error. Alone, it takes weight from what is hard: the arm, which covers
little of the picture and is unlike the table, would hardly be learnt (Seitzer et al., ICLR 2022, on such losses)."""
HUBER = 0.05
FIELD_OF_VIEW = 0.5
"""Weight of the two angles of view against translation and rotation."""


def depth_loss(depth: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
    """Mean over pixels with depth of w |d - d*| + w |grad(d - d*)| - ALPHA log c, where w = c + PLAIN.

    Args:
        depth, confidence: [B,S,H,W], predicted, positive.
        truth: [B,S,H,W]; 0 where nothing is known.
    """
    known = (truth > 0).to(depth.dtype)
    error = (depth - truth) * known
    weight = confidence + PLAIN
    value = (weight * error.abs() - ALPHA * confidence.log() * known).sum() / known.sum()
    return value + _gradient(error, weight, known, -1) + _gradient(error, weight, known, -2)


def _gradient(error: Tensor, weight: Tensor, known: Tensor, dim: int) -> Tensor:
    """The mean of w |difference of neighbours| along `dim`: edges sharp and in their places."""
    count = error.shape[dim] - 1
    both = known.narrow(dim, 0, count) * known.narrow(dim, 1, count)
    return (weight.narrow(dim, 1, count) * error.diff(dim=dim).abs() * both).sum() / both.sum()


def camera_loss(pose: Tensor, truth: Tensor) -> Tensor:
    """Huber loss of pose encodings [B,S,9], per frame the mean of translation, quaternion and (half) angles of view."""
    error = F.huber_loss(pose, truth, reduction="none", delta=HUBER) / HUBER
    translation, rotation, view = error[..., :3], error[..., 3:7], error[..., 7:]
    return translation.mean() + rotation.mean() + FIELD_OF_VIEW * view.mean()
