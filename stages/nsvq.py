"""Vector quantisation by noise substitution (Vali and Bäckström, "NSVQ", IEEE Access 2022).

Shape legend: B pairs, K code tokens, L code width, V codes, S samples.
In training the quantised vector is replaced by the vector plus noise as long as the quantisation error,
x + |x - e| / |n| n. The gradient reaches the code e through the length |x - e|, so codes learn from the task's own loss
and no further loss pulls at them. At inference the nearest code is looked up.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.draw import Draw

Init = Literal["samples", "kmeans"]


@dataclass(frozen=True, kw_only=True)
class NSVQConfig:
    """`dim` of a code, number of `codes`, code `tokens` a pair (they share the codebook), `eps` under the noise."""

    dim: int = 32
    codes: int = 256
    tokens: int = 4
    eps: float = 1e-12


class NSVQ(nn.Module):
    """A codebook f4 [V,L] and how often each code was chosen.

    Buffers, saved with the weights and summed over ranks: `window` i8 [V], choices in training since the last
    replacement, and `total` i8 [V], since the start.
    """

    window: Tensor
    total: Tensor

    def __init__(self, config: NSVQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Parameter(torch.randn(config.codes, config.dim))
        self.register_buffer("window", torch.zeros(config.codes, dtype=torch.int64))
        self.register_buffer("total", torch.zeros(config.codes, dtype=torch.int64))

    def forward(self, x_BKL: Tensor, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        """Quantised f4 [B,K,L] and codes i8 [B,K].

        In training the noise comes from `draw`, so that it does not depend on how many processes share the step, or
        else from torch's global generator; and the choices are counted. Every token is quantised by itself. Runs in
        float32 also under autocast.
        """
        with torch.autocast(x_BKL.device.type, enabled=False):
            x_BKL = x_BKL.float()
            codes_BK = self.nearest(x_BKL)
            hard_BKL = self.lookup(codes_BK)
            if not self.training:
                return hard_BKL, codes_BK
            self._count(codes_BK)
            noise_BKL = torch.randn_like(x_BKL) if draw is None else draw.normal(*x_BKL.shape[1:])
            error = torch.linalg.vector_norm(x_BKL - hard_BKL, dim=-1, keepdim=True)
            length = torch.linalg.vector_norm(noise_BKL, dim=-1, keepdim=True)
            return x_BKL + error / (length + self.config.eps) * noise_BKL, codes_BK

    @torch.no_grad()
    def nearest(self, x_BKL: Tensor) -> Tensor:
        """The nearest code of each vector [..., L], i8 [...]; the first of several equally near."""
        return _nearest(x_BKL.float().reshape(-1, x_BKL.shape[-1]), self.codebook).view(x_BKL.shape[:-1])

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors [..., L] of codes [...]."""
        return self.codebook[codes]

    @torch.no_grad()
    def replace_unused(self, seed: int, *, least: int = 1, noise: float = 0.1, samples_SL: Tensor | None = None) -> int:
        """Replace the codes chosen fewer than `least` times in the window; returns how many, and starts a new window.

        A replacement is a used code, drawn in proportion to its use, or one of `samples_SL` where they are given, plus
        `noise` times the used codes' own spread: near its source, and equal to no other code. The result
        depends on the seed and the buffers alone; on several ranks all take that of rank 0. Nothing is replaced when
        the window is empty: then nothing is known about use.
        """
        used_V = self.window >= least
        count = int((~used_V).sum())
        if count and bool(used_V.any()):
            generator = torch.Generator().manual_seed(seed)
            known = self.codebook[used_V].cpu()
            if samples_SL is None:
                chance = self.window[used_V].cpu().double()
                source = known[torch.multinomial(chance, count, replacement=True, generator=generator)]
            else:
                source = _draw(samples_SL.float().cpu(), count, generator)
            self.codebook[~used_V] = _apart(source, noise * _spread(known), generator).to(self.codebook)
            self._agree()
        else:
            count = 0
        self.window.zero_()
        return count

    @torch.no_grad()
    def init_from(self, samples_SL: Tensor, how: Init = "kmeans", seed: int = 0) -> None:
        """Take the codes from data: `samples` draws them, `kmeans` moves the drawn ones by Lloyd's algorithm.

        Equal samples give unequal codes (noise of a hundredth of the samples' spread is added). ValueError for samples
        of another width, none at all, or non-finite ones. On several ranks all take the codes of rank 0.
        """
        samples_SL = samples_SL.detach().float().cpu().reshape(-1, samples_SL.shape[-1])
        if samples_SL.shape[-1] != self.config.dim or not len(samples_SL) or not bool(samples_SL.isfinite().all()):
            raise ValueError(
                f"codes cannot start from samples of shape {list(samples_SL.shape)}: "
                f"expected at least one finite vector of {self.config.dim}"
            )
        generator = torch.Generator().manual_seed(seed)
        codes = _draw(samples_SL, self.config.codes, generator)
        if how == "kmeans":
            codes = _lloyd(samples_SL, codes)
        self.codebook.copy_(_apart(codes, 0.01 * _spread(samples_SL), generator))
        self._agree()

    @torch.no_grad()
    def _count(self, codes_BK: Tensor) -> None:
        chosen = torch.zeros_like(self.window).scatter_add_(0, codes_BK.flatten(), torch.ones_like(codes_BK.flatten()))
        if _distributed():
            dist.all_reduce(chosen)
        self.window += chosen
        self.total += chosen

    def _agree(self) -> None:
        if _distributed():
            dist.broadcast(self.codebook.data, src=0)


def perplexity(usage_V: Tensor) -> Tensor:
    """exp of the entropy of how often codes were chosen: V when all alike, 1 when one only (or none) was; a scalar."""
    share = usage_V.double() / usage_V.sum().clamp_min(1)
    return torch.exp(torch.special.entr(share).sum()).float()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _nearest(x_SL: Tensor, codes_VL: Tensor) -> Tensor:
    # |x|² is the same for every code; about the codes' mean, differences of near codes do not drown in rounding
    mean_L = codes_VL.mean(0)
    x_SL, codes_VL = x_SL - mean_L, codes_VL - mean_L
    return (codes_VL.square().sum(-1) - 2 * x_SL @ codes_VL.T).argmin(-1)


def _draw(samples_SL: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the samples, none twice before all were taken once."""
    rounds = -(-count // len(samples_SL))
    order = torch.cat([torch.randperm(len(samples_SL), generator=generator) for _ in range(rounds)])
    return samples_SL[order[:count]]


def _spread(x_SL: Tensor) -> float:
    """Typical distance of a component from the mean; of vectors that are all alike, a tenth of their size."""
    about_mean, about_zero = ((x_SL - m).square().mean().sqrt().item() for m in (x_SL.mean(0), 0.0))
    return max(about_mean, 0.1 * about_zero) or 1.0


def _apart(codes: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return codes + scale * torch.randn(codes.shape, generator=generator)


def _lloyd(samples_SL: Tensor, codes_VL: Tensor, rounds: int = 25) -> Tensor:
    """k-means from the given start; a code that no sample is nearest to stays where it is."""
    for _ in range(rounds):
        owner_S = _nearest(samples_SL, codes_VL)
        size_V = torch.bincount(owner_S, minlength=len(codes_VL))[:, None]
        total_VL = torch.zeros_like(codes_VL).index_add_(0, owner_S, samples_SL)
        codes_VL = torch.where(size_V > 0, total_VL / size_V.clamp_min(1), codes_VL)
    return codes_VL
