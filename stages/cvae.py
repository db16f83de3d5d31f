"""The two ends of ACT: actions into a latent, and memory into a chunk of actions (Zhao et al., RSS 2023, section IV-C).

In training the latent says in which of the ways that people do a task the chunk was done, so that the decoder need not
average them; a KL term keeps it near a standard normal. At inference it is 0, the mean of that, and the posterior is
not run.

Shape legend: B batch, H horizon, A action dimensions, S state dimensions, Z latent width, M memory tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.detr import DecoderLayer, EncoderLayer, sine_positions_1d
from stages.draw import Draw
from stages.heads.base import unpadded_mean
from stages.layers import run


@dataclass(frozen=True, kw_only=True)
class ChunkVAEConfig:
    """Sizes of `Posterior` and `ChunkDecoder`, with the published ones as defaults.

    Attributes:
        actions, state: dimensions of the action and of the state; 0 for a robot that does not tell its state.
        horizon: steps of a chunk. dim, heads, hidden, dropout: of all layers.
        posterior_layers, decoder_layers: the published code builds 7 decoder layers and reads the first; this is 1.
        latent: width of the latent. kl_weight: of the KL term.
        checkpoint: recompute activations in the backward pass.
    """

    actions: int
    state: int = 0
    horizon: int = 100
    dim: int = 512
    heads: int = 8
    hidden: int = 3200
    posterior_layers: int = 4
    decoder_layers: int = 1
    latent: int = 32
    kl_weight: float = 10.0
    dropout: float = 0.1
    checkpoint: bool = False


class Posterior(nn.Module):
    """[cls, state, actions] through a transformer; what becomes of cls is mean and log variance of the latent."""

    positions: Tensor

    def __init__(self, config: ChunkVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.cls = nn.Parameter(torch.randn(1, 1, config.dim))
        self.state = nn.Linear(config.state, config.dim) if config.state else None
        self.actions = nn.Linear(config.actions, config.dim)
        length = 1 + bool(config.state) + config.horizon
        self.register_buffer("positions", sine_positions_1d(length, config.dim), persistent=False)
        self.layers = nn.ModuleList(
            EncoderLayer(config.dim, config.heads, config.hidden, config.dropout)
            for _ in range(config.posterior_layers)
        )
        self.out = nn.Linear(config.dim, 2 * config.latent)

    def forward(self, actions_BHA: Tensor, is_pad_BH: Tensor, state_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log variance f4 [B,Z]. Padded steps are not seen, whatever is in them."""
        actions_BHA = actions_BHA.masked_fill(is_pad_BH[..., None], 0.0)
        tokens = [self.cls.expand(len(actions_BHA), -1, -1)]
        if self.state is not None:
            assert state_BS is not None, "a posterior built with a state needs one"
            tokens.append(self.state(state_BS)[:, None])
        first = len(tokens)
        x_BND = torch.cat([*tokens, self.actions(actions_BHA)], dim=1)
        hidden_BN = nn.functional.pad(is_pad_BH, (first, 0), value=False)
        for layer in self.layers:
            x_BND = run(layer, x_BND, self.positions, hidden_BN, checkpointed=self.config.checkpoint)
        mean_BZ, log_variance_BZ = self.out(x_BND[:, 0]).float().chunk(2, dim=-1)
        return mean_BZ, log_variance_BZ


class ChunkDecoder(nn.Module):
    """A learned slot a step, which looks into the memory; an action and a padding logit from each.

    What the slots carry starts at 0, as in DETR: in the first layer they see nothing in each other, only the memory.
    """

    def __init__(self, config: ChunkVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.slots = nn.Parameter(torch.randn(config.horizon, config.dim))
        self.layers = nn.ModuleList(
            DecoderLayer(config.dim, config.heads, config.hidden, config.dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.action = nn.Linear(config.dim, config.actions)
        self.padding = nn.Linear(config.dim, 1)

    def forward(self, memory_BMD: Tensor, positions_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Actions f4 [B,H,A] and padding logits f4 [B,H].

        The padding output reads the slots without a gradient into them: it is about the padded steps too, and they
        must teach nothing to the rest.
        """
        x_BHD = memory_BMD.new_zeros(len(memory_BMD), *self.slots.shape)
        for layer in self.layers:
            x_BHD = run(layer, x_BHD, self.slots, memory_BMD, positions_MD, checkpointed=self.config.checkpoint)
        x_BHD = self.norm(x_BHD)
        return self.action(x_BHD).float(), self.padding(x_BHD.detach()).float().squeeze(-1)


def sample_latent(mean_BZ: Tensor, log_variance_BZ: Tensor, draw: Draw | None) -> Tensor:
    """A latent [B,Z] by the reparameterisation of Kingma and Welling (2014); noise from `draw` or torch's generator."""
    noise_BZ = torch.randn_like(mean_BZ) if draw is None else draw.normal(*mean_BZ.shape[1:])
    return mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BZ


def kl_to_standard_normal(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """KL divergence from N(0, I), summed over the latent's dimensions, mean over the batch; in nats, a scalar.

    Kingma and Welling (2014), appendix B; the published ACT sums and averages in this order too.
    """
    per_dimension = 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ)
    return per_dimension.sum(1).mean()


def chunk_vae_loss(
    config: ChunkVAEConfig,
    predicted: tuple[Tensor, Tensor],
    posterior: tuple[Tensor, Tensor],
    actions_BHA: Tensor,
    is_pad_BH: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 over the steps that are not padding plus the weighted KL, and detached scalars.

    The published code divides the L1 by all steps, which weighs the KL term the more, the more padding a batch has.

    Args:
        predicted: actions and padding logits of `ChunkDecoder`. posterior: mean and log variance of `Posterior`.
        actions_BHA: normalised; what padded steps hold does not matter.

    `kl` is in nats before its weight. The padding output learns by cross-entropy (`padding`), which adds its gradient
    to the loss and not its value: it reaches no other parameter, and the loss stays the published one.
    """
    actions, logits = predicted
    error_BHA = (actions - actions_BHA.masked_fill(is_pad_BH[..., None], 0.0).float()).abs()
    l1 = unpadded_mean(error_BHA, is_pad_BH)
    kl = kl_to_standard_normal(*posterior)
    padding = nn.functional.binary_cross_entropy_with_logits(logits, is_pad_BH.to(logits.dtype))
    loss = l1 + config.kl_weight * kl + (padding - padding.detach())
    return loss, {"l1": l1.detach(), "kl": kl.detach(), "padding": padding.detach()}
