"""The VGGT backbone: frozen aggregator tokens, and trained adapters that bring in language, state and action queries.

Shape legend: B moments, N tokens of the sequence, M = 5 + P aggregator tokens, D model width, E width of an aggregator
token. The tokens come from a store, so that VGGT itself does not run. What is frozen stays a stream of its own, which
starts as VGGT left it: in each layer a bottleneck adapter (Houlsby et al., ICML 2019) lets it see the sequence, behind
a gate that opens from 0 (Alayrac et al., Flamingo, NeurIPS 2022); then the sequence, action queries among it, looks at
it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.backbones.base import Backbone, TokenSequence
from stages.layers import Attention, Standardise, TransformerBlock, run
from stages.vision import frozen_tokens


@dataclass(frozen=True, kw_only=True)
class VGGTBackboneConfig:
    """Sizes of `VGGTBackbone`.

    Attributes:
        channels: of the aggregator's tokens. bottleneck: width of the adapters, of `adapter_heads` heads.
        dim, depth, heads, hidden: width, layers, heads, FFN width of the sequence.
    """

    channels: int = 2048
    bottleneck: int = 256
    adapter_heads: int = 4
    dim: int = 768
    depth: int = 6
    heads: int = 12
    hidden: int = 3072
    checkpoint: bool = False


class VGGTBackbone(Backbone):
    """Layers of adapter and cross-attending block, and an output norm."""

    columns = ("vision/vggt",)

    def __init__(self, config: VGGTBackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.features = Standardise(config.channels)
        self.down = nn.Linear(config.channels, config.dim)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, sequence: TokenSequence, batch: PolicyBatch) -> Tensor:
        """[B,N,D]."""
        x, seen = sequence.tokens(len(batch)), sequence.mask(len(batch))
        geometry = self.down(self.features(frozen_tokens(batch, "vggt", self.config.channels)))
        joint = torch.cat([x, geometry], dim=1)
        for layer in self.layers:
            joint = run(layer, joint, x.shape[1], seen, checkpointed=self.config.checkpoint)
        out: Tensor = self.norm(joint[:, : x.shape[1]])
        return out

    def frozen_features(self, batch: PolicyBatch) -> Iterator[tuple[Standardise, Tensor]]:
        """The aggregator's tokens."""
        yield self.features, frozen_tokens(batch, "vggt", self.config.channels).flatten(0, 1)


class _Layer(nn.Module):
    """The geometry looks at the sequence through the adapter; then the sequence at itself and at the geometry."""

    def __init__(self, config: VGGTBackboneConfig) -> None:
        super().__init__()
        self.adapter = _Adapter(config)
        self.norm_geometry = nn.LayerNorm(config.dim)
        self.block = TransformerBlock(config.dim, config.heads, config.hidden, cross=True)

    def forward(self, joint: Tensor, length: int, seen_BN: Tensor | None) -> Tensor:
        """Sequence [B,N,D] and geometry [B,M,D], joined; so they are kept together where activations are recomputed."""
        x, geometry = joint[:, :length], joint[:, length:]
        geometry = self.adapter(geometry, x, seen_BN)
        x = self.block(x, self.norm_geometry(geometry), seen_BN)
        return torch.cat([x, geometry], dim=1)


class _Adapter(nn.Module):
    """geometry + tanh(gate) · up(attention(down(geometry), sequence)), at the bottleneck's width."""

    def __init__(self, config: VGGTBackboneConfig) -> None:
        super().__init__()
        self.norm, self.norm_sequence = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.down = nn.Linear(config.dim, config.bottleneck)
        self.attention = Attention(config.bottleneck, config.adapter_heads, context_dim=config.dim)
        self.up = nn.Sequential(nn.GELU(), nn.Linear(config.bottleneck, config.dim))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, geometry_BMD: Tensor, x_BND: Tensor, seen_BN: Tensor | None) -> Tensor:
        """[B,M,D]."""
        asked = self.down(self.norm(geometry_BMD))
        told = self.up(asked + self.attention(asked, self.norm_sequence(x_BND), seen_BN))
        out: Tensor = geometry_BMD + self.gate.tanh() * told
        return out
