"""Action Chunking with Transformers, a policy of its own (Zhao et al., RSS 2023).

    actions, state ─▶ posterior ─▶ latent (0 at inference) ─┐
    pictures ─▶ ResNet-18 ─▶ cells of every camera ─────────┤
    state, instruction ─────────────────────────────────────┴▶ encoder ─▶ memory ─▶ decoder ◀─ a slot a step
                                                                                       └─▶ actions, padding

What differs from the published code, beside `unpadded_mean`: cells of different cameras get a learned embedding each
(there the cameras cannot be told apart), and a decoder layer that is not read is not built.

Shape legend: B moments, N tokens of the encoder, D model width, h w cells of a picture, H steps of a chunk, A and S
dimensions of action and state, Z of the latent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.cvae import ChunkDecoder, ChunkVAEConfig, Posterior, chunk_vae_loss, sample_latent
from stages.detr import EncoderLayer, sine_positions_of_picture
from stages.draw import Draw
from stages.language import LanguageConfig, LanguageProjector
from stages.layers import run
from stages.normalise import ActionStateNormaliser, Mode
from stages.resnet import ResNet, ResNetConfig
from stages.rotations import RotationConfig, RotationView


@dataclass(frozen=True, kw_only=True)
class ACTConfig:
    """Sizes of an `ACTPolicy`; the defaults are the published ones, with 51.6M parameters for ALOHA's one camera.

    Attributes:
        cameras: `rgb` for the store's own square frame, else names of views. All share one backbone.
        horizon: steps of a chunk, H. state, action: dimensions of the robot's (state 0: none is seen).
        dim, heads, hidden, dropout, layers: of the encoder. posterior_layers, decoder_layers, latent, kl_weight: see
            `ChunkVAEConfig`.
        backbone_lr: share of the learning rate that the backbone gets; published are 1e-5 for both.
        normalise, rotation: as in `VLAConfig`.
        checkpoint: recompute activations in the backward pass.
        language: of the instructions, whose mean is one token; 0 channels for a policy of one task.
    """

    cameras: tuple[str, ...] = ("rgb",)
    horizon: int = 100
    state: int = 14
    action: int = 14
    dim: int = 512
    heads: int = 8
    hidden: int = 3200
    dropout: float = 0.1
    layers: int = 4
    posterior_layers: int = 4
    decoder_layers: int = 1
    latent: int = 32
    kl_weight: float = 10.0
    backbone_lr: float = 1.0
    normalise: Mode = "mean_std"
    checkpoint: bool = False
    rotation: RotationConfig = field(default_factory=RotationConfig)
    language: LanguageConfig = field(default_factory=lambda: LanguageConfig(channels=0))
    resnet: ResNetConfig = field(default_factory=ResNetConfig)

    def for_store(self, *, state: int, action: int, channels: Mapping[str, int]) -> "ACTConfig":
        """The config for a store's robot, and the channels of its text encoder (`language`), if it has one."""
        language = self.language
        if language.channels and "language" in channels:
            language = replace(language, channels=channels["language"])
        return replace(self, state=state if self.state else 0, action=action, language=language)


class ACTPolicy(nn.Module):
    """A policy; see `ACTConfig`.

    Attributes:
        columns: what it reads of a store. The caller decodes the pictures into `PolicyBatch.images`.
        horizon: steps of a chunk.
        backbone: starts from random weights; `backbone.load_pretrained` takes those of `microsoft/resnet-18`.
    """

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        if not config.cameras or len(set(config.cameras)) != len(config.cameras):
            raise ValueError(f"ACT needs at least one camera, and each once: got {', '.join(config.cameras) or 'none'}")
        self.config, self.horizon = config, config.horizon
        dim, has_state = config.dim, bool(config.state)
        views = [RotationView(config.rotation, config.action)] if config.rotation.start >= 0 else []
        self.normaliser = ActionStateNormaliser(
            state=config.state, action=config.action, mode=config.normalise, views=views
        )
        self.vae = ChunkVAEConfig(
            actions=self.normaliser.action_width,
            state=self.normaliser.state_width if has_state else 0,
            horizon=config.horizon,
            dim=dim,
            heads=config.heads,
            hidden=config.hidden,
            posterior_layers=config.posterior_layers,
            decoder_layers=config.decoder_layers,
            latent=config.latent,
            kl_weight=config.kl_weight,
            dropout=config.dropout,
            checkpoint=config.checkpoint,
        )
        self.posterior = Posterior(self.vae)
        self.backbone = ResNet(config.resnet)
        self.cells = nn.Linear(self.backbone.channels, dim)
        self.cameras = nn.Parameter(torch.randn(len(config.cameras), dim)) if len(config.cameras) > 1 else None
        self.latent = nn.Linear(config.latent, dim)
        self.state = nn.Linear(self.normaliser.state_width, dim) if has_state else None
        self.language = LanguageProjector(config.language, dim) if config.language.channels else None
        self.positions = nn.Parameter(torch.randn(1 + has_state + (self.language is not None), dim))
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, config.heads, config.hidden, config.dropout) for _ in range(config.layers)
        )
        self.decoder = ChunkDecoder(self.vae)
        read = {"rgb" if name == "rgb" else f"views/{name}" for name in config.cameras}
        read |= {"state"} if has_state else set()
        read |= {"language"} if self.language is not None else set()
        self.targets: tuple[str, ...] = ()
        self.columns: tuple[str, ...] = tuple(sorted(read))

    def forward(self, batch: PolicyBatch, draw: Draw | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and detached scalars `l1`, `kl` (in nats) and `padding`; see `chunk_vae_loss`.

        The latent is drawn from the posterior with noise of `draw`, in validation too. Of longer chunks the first H
        steps are learned. ValueError for shorter ones, and when the batch lacks what the policy reads.
        """
        actions, is_pad = batch.need_action()
        if actions.shape[1] < self.horizon:
            raise ValueError(
                f"the chunks have {actions.shape[1]} steps and the policy was built for {self.horizon}: set horizon to "
                "at most them"
            )
        actions, is_pad = actions[:, : self.horizon], is_pad[:, : self.horizon]
        actions = self.normaliser.normalise_action(actions, batch.frames.state)
        state = self._state(batch)
        mean, log_variance = self.posterior(actions, is_pad, state)
        predicted = self._decode(batch, state, sample_latent(mean, log_variance, draw))
        return chunk_vae_loss(self.vae, predicted, (mean, log_variance), actions, is_pad)

    def act(self, batch: PolicyBatch, draw: Draw | None = None) -> Tensor:
        """The chunk f4 [B,H,A] of latent 0, in the dataset's own units. Nothing is drawn."""
        latent = torch.zeros(len(batch), self.config.latent, device=self.positions.device)
        actions, _ = self._decode(batch, self._state(batch), latent)
        return self.normaliser.restore_action(actions, batch.frames.state)

    def lr_scales(self) -> dict[str, float]:
        """By the beginning of parameter names, what the learning rate is multiplied by there."""
        return {"backbone.": self.config.backbone_lr}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[PolicyBatch]) -> None:
        """Take mean and deviation by channel of the instructions' features, from some training batches of a new run."""
        if self.language is None:
            return
        languages = [batch.need_language() for batch in batches]
        feat = torch.cat([language.feat[language.mask] for language in languages]).double()
        self.language.features.set(feat.mean(0).float(), feat.std(0, correction=0).float())

    def _state(self, batch: PolicyBatch) -> Tensor | None:
        """Normalised f4 [B,S]."""
        return None if self.state is None else self.normaliser.normalise_state(batch.need_state())

    def _decode(self, batch: PolicyBatch, state_BS: Tensor | None, latent_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised actions f4 [B,H,A] and padding logits f4 [B,H]."""
        tokens = [self.latent(latent_BZ)[:, None]]
        positions: list[Tensor] = [self.positions]
        if self.state is not None:
            tokens.append(self.state(state_BS)[:, None])
        if self.language is not None:
            language = self.language(batch.need_language())
            shown = language.mask[..., None]
            mean = (language.tokens * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True).clamp_min(1)
            tokens.append(mean)
        for index, name in enumerate(self.config.cameras):
            cells_BhwD = self.cells(self.backbone(_picture(batch, name)))
            rows, columns = cells_BhwD.shape[1:3]
            place = sine_positions_of_picture(rows, columns, self.config.dim, cells_BhwD.device)
            positions.append(place if self.cameras is None else place + self.cameras[index])
            tokens.append(cells_BhwD.flatten(1, 2))
        x_BND, positions_ND = torch.cat(tokens, dim=1), torch.cat(positions)
        for layer in self.encoder:
            x_BND = run(layer, x_BND, positions_ND, checkpointed=self.config.checkpoint)
        actions_BHA, padding_BH = self.decoder(x_BND, positions_ND)
        return actions_BHA, padding_BH


def _picture(batch: PolicyBatch, name: str) -> Tensor:
    """u1 [B,H,W,3] of a camera."""
    if name not in batch.images:
        seen = ", ".join(batch.images) or "none"
        raise ValueError(f"the batch has no pictures of camera {name!r} (it has {seen}): extract with views={name}")
    return batch.images[name]
