"""Action chunking as a head: a conditional VAE over the features of a backbone (Zhao et al., RSS 2023).

Shape legend: B moments, N action queries, F width of the features, D width of the head, H steps of a chunk,
A dimensions of an action, S of a state, Z of the latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.cvae import ChunkDecoder, ChunkVAEConfig, Posterior, chunk_vae_loss, sample_latent
from stages.draw import Draw
from stages.heads.base import Head, HeadSizes


@dataclass(frozen=True, kw_only=True)
class ACTHeadConfig:
    """Sizes of `ACTHead`; see `ChunkVAEConfig`. The state is seen by the posterior alone: features have their own."""

    dim: int = 512
    heads: int = 8
    hidden: int = 3200
    posterior_layers: int = 4
    decoder_layers: int = 1
    latent: int = 32
    kl_weight: float = 10.0
    dropout: float = 0.1
    checkpoint: bool = False


class ACTHead(Head):
    """The memory of the decoder is the latent and the features; a slot a step gives its action and whether it is past
    the end of the episode."""

    def __init__(self, config: ACTHeadConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.vae = ChunkVAEConfig(actions=sizes.action, state=sizes.state, horizon=sizes.horizon, **vars(config))
        self.posterior = Posterior(self.vae)
        self.decoder = ChunkDecoder(self.vae)
        self.latent = nn.Linear(config.latent, config.dim)
        self.features = nn.Linear(sizes.dim, config.dim)
        self.positions = nn.Parameter(torch.randn(1 + sizes.queries, config.dim))

    def loss(
        self,
        features_BND: Tensor,
        actions_BHA: Tensor,
        is_pad_BH: Tensor,
        draw: Draw | None = None,
        *,
        state_BS: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `chunk_vae_loss`; the latent is drawn from the posterior, in validation too."""
        mean_BZ, log_variance_BZ = self.posterior(actions_BHA, is_pad_BH, state_BS)
        predicted = self._decode(features_BND, sample_latent(mean_BZ, log_variance_BZ, draw))
        return chunk_vae_loss(self.vae, predicted, (mean_BZ, log_variance_BZ), actions_BHA, is_pad_BH)

    def act(self, features_BND: Tensor, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A] of latent 0; nothing is drawn."""
        return self._decode(features_BND, features_BND.new_zeros(len(features_BND), self.config.latent))[0]

    def _decode(self, features_BNF: Tensor, latent_BZ: Tensor) -> tuple[Tensor, Tensor]:
        memory_BMD = torch.cat([self.latent(latent_BZ)[:, None], self.features(features_BNF)], dim=1)
        actions_BHA, padding_BH = self.decoder(memory_BMD, self.positions)
        return actions_BHA, padding_BH
