"""The head of pretraining: the codes of a latent action model, which need no robot.

Shape legend: B moments, N action queries, D model width, K codes a moment, C of the codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.heads.base import HeadSizes
from stages.heads.chunk import interpolation
from stages.layers import feed_forward


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """`tokens` codes a moment, out of `codes`; `hidden` width of the MLP."""

    tokens: int = 4
    codes: int = 256
    hidden: int = 768


class LatentHead(nn.Module):
    """Logits of every code from the action queries, as LAPA's latent pretraining (Ye et al., ICLR 2025)."""

    def __init__(self, config: LatentConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(interpolation(config.tokens, sizes.queries))
        self.token = nn.Parameter(torch.randn(config.tokens, sizes.dim) * 0.02)  # which code is asked for
        self.mlp = feed_forward(sizes.dim, config.hidden, config.codes)

    def loss(self, features_BND: Tensor, codes_BK: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats a code, and `accuracy`. ValueError for codes of another codebook."""
        config = self.config
        if codes_BK.shape != (len(features_BND), config.tokens):
            raise ValueError(
                f"codes have shape {list(codes_BK.shape)}, expected {[len(features_BND), config.tokens]}: set "
                "latent.tokens to the codes a pair of the latent action model"
            )
        logits_BKC = self.logits(features_BND)
        loss = F.cross_entropy(logits_BKC.flatten(0, 1), codes_BK.flatten())
        right = (logits_BKC.detach().argmax(-1) == codes_BK).float().mean()
        return loss, {"accuracy": right}

    def codes(self, features_BND: Tensor) -> Tensor:
        """The likeliest codes i8 [B,K]."""
        return self.logits(features_BND).argmax(-1)

    def logits(self, features_BND: Tensor) -> Tensor:
        """f4 [B,K,C]."""
        asked_BKD = torch.einsum("kn,bnd->bkd", self.mix.to(features_BND.dtype), features_BND) + self.token
        logits: Tensor = self.mlp(asked_BKD)
        return logits.float()
