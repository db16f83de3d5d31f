"""Instructions: frozen text encoder outputs → tokens of the policy's width.

Shape legend: B moments, L tokens of an instruction, E width of the text encoder, D model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from data_specs.batches import Batch, LanguageBatch
from stages.layers import Standardise, feed_forward


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """`channels` of the text encoder (0: the policy has no instructions), `hidden` width of the projector."""

    channels: int = 1024
    hidden: int = 768


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageTokens(Batch):
    """`tokens` f [B,L,D] and `mask` bool [B,L], true for real ones."""

    tokens: Tensor
    mask: Tensor


class LanguageProjector(nn.Module):
    """Standardised features, then E → hidden → D: LanguageBatch → LanguageTokens. Padding is zeroed before it."""

    def __init__(self, config: LanguageConfig, dim: int) -> None:
        super().__init__()
        self.features = Standardise(config.channels)
        self.project = feed_forward(config.channels, config.hidden, dim)

    def forward(self, language: LanguageBatch) -> LanguageTokens:
        """Tokens of the model's width. ValueError when the text encoder is another."""
        channels = len(self.features.mean)
        if language.feat.shape[-1] != channels:
            raise ValueError(
                f"the instructions have {language.feat.shape[-1]} channels and the policy was built for {channels}: "
                "build it with those of the text encoder (language.channels)"
            )
        feat = self.features(language.feat).masked_fill(~language.mask[..., None], 0.0)
        return LanguageTokens(tokens=self.project(feat), mask=language.mask)
