"""Diffusion as a head: a chunk of actions is denoised, step by step, by a transformer that sees the features.

After Diffusion Policy (Chi et al., RSS 2023): DDPM (Ho et al., NeurIPS 2020) with the squared-cosine noise of Nichol
and Dhariwal (ICML 2021) in training, DDIM (Song et al., ICLR 2021) in few steps at inference. What the network predicts
is the velocity by default (Salimans and Ho, ICLR 2022), which stays of one size where the noise drowns the actions; a
prediction of the noise is divided by nearly 0 there and needs `clip`.

Shape legend: B moments, N action queries, F width of the features, D width of the head, H steps of a chunk,
A dimensions of an action, K draws of noise.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages.detr import sine_positions_1d
from stages.draw import Draw
from stages.heads.base import Head, HeadSizes, unpadded_mean
from stages.layers import TransformerBlock, run

Prediction = Literal["v_prediction", "epsilon", "sample"]


@dataclass(frozen=True, kw_only=True)
class DiffusionHeadConfig:
    """Sizes and schedule of `DiffusionHead`.

    Attributes:
        dim, layers, heads, hidden: of the denoiser.
        levels: of noise in training. steps: denoising steps at inference, a divisor of `levels`.
        repeats: draws of level and noise for each moment in training: the denoiser learns from several at the cost of
            one pass of the backbone (as Li et al., "CogACT", 2024).
        prediction: what the network predicts: velocity, noise, or the actions.
        clip: bound of the normalised actions that are foreseen at each step; None for none. Where actions are
            normalised by their least and greatest, 1 is right.
        checkpoint: recompute activations in the backward pass.
    """

    dim: int = 512
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    levels: int = 100
    steps: int = 10
    repeats: int = 4
    prediction: Prediction = "v_prediction"
    clip: float | None = None
    checkpoint: bool = False


class Denoiser(nn.Module):
    """Noisy chunks, how noisy they are, and the features they go with → what `prediction` says, of each step.

    Steps see each other, in both directions: with each seeing earlier ones alone (as Diffusion Policy's transformer
    has it) the steps of a chunk do not agree on one of several ways, since which way a noisy step goes also shows in
    later ones (measured on two ways, after 1,000 steps: 52 to 75 % of the chunks keep to one, against 98 to 100 %).
    """

    positions: Tensor
    levels: Tensor

    def __init__(self, config: DiffusionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__()
        self.config = config
        self.actions = nn.Linear(sizes.action, config.dim)
        self.register_buffer("positions", sine_positions_1d(sizes.horizon, config.dim), persistent=False)
        self.register_buffer("levels", sine_positions_1d(config.levels, config.dim), persistent=False)
        self.level = nn.Sequential(nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.features = nn.Sequential(nn.Linear(sizes.dim, config.dim), nn.LayerNorm(config.dim))
        self.queries = nn.Parameter(torch.randn(sizes.queries, config.dim) * 0.02)  # which feature is which
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.hidden, cross=True) for _ in range(config.layers)
        )
        self.norm, self.out = nn.LayerNorm(config.dim), nn.Linear(config.dim, sizes.action)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def context(self, features_BNF: Tensor) -> Tensor:
        """What the denoiser takes of the features [B,N,D]: the same at every level."""
        out: Tensor = self.features(features_BNF) + self.queries
        return out

    def forward(self, noisy_BHA: Tensor, level_B: Tensor, context_BND: Tensor) -> Tensor:
        """f4 [B,H,A]."""
        level_B1D = self.level(self.levels[level_B])[:, None]
        x_BHD = self.actions(noisy_BHA) + self.positions + level_B1D
        for block in self.blocks:
            x_BHD = run(block, x_BHD, context_BND, checkpointed=self.config.checkpoint)
        out: Tensor = self.out(self.norm(x_BHD)).float()
        return out


class DiffusionHead(Head):
    """A `Denoiser` with the schedulers of `diffusers`. Chunks are drawn: different draws may go different ways."""

    def __init__(self, config: DiffusionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__()
        if config.repeats < 1:
            raise ValueError(f"each moment needs a draw of noise, got repeats={config.repeats}")
        if not 1 <= config.steps <= config.levels or config.levels % config.steps:
            raise ValueError(
                f"{config.steps} denoising steps do not divide {config.levels} levels of noise: choose a divisor"
            )
        self.config, self.sizes = config, sizes
        self.denoiser = Denoiser(config, sizes)
        with torch.device("cpu"):
            self._noise, self._sampler = _schedulers(config)

    def loss(
        self,
        features_BND: Tensor,
        actions_BHA: Tensor,
        is_pad_BH: Tensor,
        draw: Draw | None = None,
        *,
        state_BS: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of what is predicted, at levels of noise drawn for each moment; `mse` is its value.

        Padded steps count as actions of 0 for the others to see: hidden in training, they would be seen for the first
        time at inference, where nobody knows where the episode ends. The state is not used: features have their own.
        """
        repeats, levels, shape = self.config.repeats, self.config.levels, actions_BHA.shape[1:]
        if draw is None:
            level_BK = torch.randint(levels, (len(actions_BHA), repeats), device=actions_BHA.device)
            noise_BKHA = torch.randn(len(actions_BHA), repeats, *shape, device=actions_BHA.device)
        else:
            level_BK, noise_BKHA = draw.integers(levels, repeats), draw.normal(repeats, *shape)
        # from here on B is B*K
        level_B, noise_BHA = level_BK.flatten(), noise_BKHA.flatten(0, 1)
        actions_BHA, is_pad_BH, context_BND = (
            x.repeat_interleave(repeats, 0) for x in (actions_BHA, is_pad_BH, self.denoiser.context(features_BND))
        )
        actions_BHA = actions_BHA.float().masked_fill(is_pad_BH[..., None], 0.0)
        noisy_BHA = self._noise.add_noise(actions_BHA, noise_BHA, level_B)
        predicted_BHA = self.denoiser(noisy_BHA, level_B, context_BND)
        if self.config.prediction == "epsilon":
            target_BHA = noise_BHA
        elif self.config.prediction == "sample":
            target_BHA = actions_BHA
        else:
            target_BHA = self._noise.get_velocity(actions_BHA, noise_BHA, level_B)
        loss = unpadded_mean((predicted_BHA - target_BHA).square(), is_pad_BH)
        return loss, {"mse": loss.detach()}

    def act(self, features_BND: Tensor, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A] that noise from `draw` is denoised to; the same noise gives the same chunk."""
        shape = (self.sizes.horizon, self.sizes.action)
        if draw is None:
            x_BHA = torch.randn(len(features_BND), *shape, device=features_BND.device)
        else:
            x_BHA = draw.normal(*shape)
        context_BND = self.denoiser.context(features_BND)
        for level in self._sampler.timesteps.tolist():
            level_B = torch.full((len(x_BHA),), level, device=x_BHA.device)
            predicted_BHA = self.denoiser(x_BHA, level_B, context_BND)
            x_BHA = self._sampler.step(predicted_BHA, level, x_BHA, return_dict=False)[0]
        return x_BHA


def _schedulers(config: DiffusionHeadConfig) -> tuple[Any, Any]:
    """The schedule of training and the sampler, with the same noise; neither reads a file."""
    import diffusers

    ddim: Any = diffusers.DDIMScheduler  # its lazy imports look like placeholders to a type checker
    ddpm: Any = diffusers.DDPMScheduler
    shared = {
        "num_train_timesteps": config.levels,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": config.prediction,
    }
    # trailing: the first step starts at the last level, which is nearly all noise, as what is drawn is
    sampler = ddim(
        **shared,
        clip_sample=config.clip is not None,
        clip_sample_range=1.0 if config.clip is None else config.clip,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    sampler.set_timesteps(config.steps)
    return ddpm(**shared), sampler
