"""What frozen image encoders see in a frame: patch tokens, row by row; and the tokens of VGGT's aggregator.

Shape legend: F frames, H W sides of the frame, N tokens, D channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_specs.shards import VISION, ModelRecord
from pipeline.config import RequestError, VisionSection
from pipeline.extract.encoders.folder import ModelFolder, find_folder, first_of, random_record, random_seed
from pipeline.extract.encoders.loading import fill_random, load_strictly, read_config
from stages.vggt import VGGT

ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Encoders that take pictures of any whole number of patches; the others see them at the size of their config."""

NOT_SQUARE = ("siglip2",)
"""Encoders whose inputs are not one square picture."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WIDTH, LAYERS, HEADS, PATCH = 64, 2, 4, 14
"""Sizes of the random tower, a small DINOv2."""


@dataclass(frozen=True, kw_only=True)
class TowerWeights:
    """An image encoder found: a folder, or the seed of a random one."""

    record: ModelRecord
    folder: ModelFolder | None = None
    seed: int = 0


def find_tower(name: str, description: str) -> TowerWeights:
    """The weights of `vision.towers` NAME; RequestError with the alternatives when they cannot be had."""
    key, role = f"vision.towers={name}", VISION + name

    def find(spec: str) -> TowerWeights:
        seed = random_seed(key, spec)
        if seed is not None:
            return TowerWeights(record=random_record(role, spec), seed=seed)
        weights, _, revision = spec.partition("@")
        folder = find_folder(role, key, weights, revision or "main")
        return TowerWeights(record=folder.record, folder=folder)

    return first_of(key, description, find)


class VisionTower(nn.Module):
    """A frozen image encoder: frames → its last patch tokens [F,N,D], without class and register tokens.

    Args:
        model: gives `last_hidden_state` for `pixel_values`; special tokens come before the patches.
        side: of the picture that it sees, pixels. patch: side of a patch.
        mean, std: of the colours in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, side: int, patch: int, channels: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.model, self.side = model, side
        self.tokens, self.channels = (side // patch) ** 2, channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None], persistent=False)

    @torch.inference_mode()
    def forward(self, rgb_FHW3: Tensor) -> Tensor:
        """Frames u1 [F,H,W,3] → f4 [F,N,D]."""
        pictures = rgb_FHW3.permute(0, 3, 1, 2).float() / 255
        if pictures.shape[-1] != self.side:
            pictures = F.interpolate(pictures, size=self.side, mode="bicubic", antialias=True).clamp(0, 1)
        out: Tensor = self.model(pixel_values=(pictures - self.mean) / self.std).last_hidden_state
        special = out.shape[1] - self.tokens
        assert special >= 0, (out.shape, self.tokens)
        return out[:, special:].float()


def load_tower(
    name: str, section: VisionSection, weights: TowerWeights, size: int, device: torch.device
) -> VisionTower:
    """Build and load an image encoder for frames of `size` pixels; RequestError when it does not fit."""
    if weights.folder is None:
        _check_side(name, size, PATCH)
        random = _random_model(weights.seed, size)
        mean, std = IMAGENET
        return VisionTower(random, side=size, patch=PATCH, channels=WIDTH, mean=mean, std=std).to(device).eval()
    config = read_config(weights.folder)
    if config.model_type in NOT_SQUARE:
        raise RequestError(
            f"vision.towers={name}: a {config.model_type} sees pictures of any shape as loose patches; choose a model "
            "of square pictures, for example google/siglip-base-patch16-224."
        )
    config = getattr(config, "vision_config", config)  # of CLIP and SigLIP
    patch, channels, image = (getattr(config, key, None) for key in ("patch_size", "hidden_size", "image_size"))
    if not (isinstance(patch, int) and isinstance(channels, int) and isinstance(image, int)):
        raise RequestError(
            f"vision.towers={name}: a {config.model_type} does not cut square pictures into patches of one width; "
            "choose a vision transformer (DINOv2, CLIP, SigLIP, ViT)."
        )
    side = size if config.model_type in ANY_SIZE else image
    _check_side(name, side, patch)
    shades = _colours(weights.folder)
    model = load_strictly(weights.folder, config)
    tower = VisionTower(model, side=side, patch=patch, channels=channels, mean=shades[0], std=shades[1])
    return tower.to(device).eval()


def _check_side(name: str, side: int, patch: int) -> None:
    if side % patch:
        fit = max(patch, round(side / patch) * patch)
        raise RequestError(
            f"vision.towers={name} cuts pictures into patches of {patch} pixels, and frames of {side} are no whole "
            f"number of them: give frames.size={fit}."
        )


def _colours(folder: ModelFolder) -> tuple[list[float], list[float]]:
    """What the encoder's own preprocessing subtracts and divides by; its resizing is ours already."""
    values = folder.json("preprocessor_config.json")
    mean, std = values.get("image_mean"), values.get("image_std")
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
        raise RequestError(f"{folder.path}/preprocessor_config.json names no image_mean and image_std of 3 colours.")
    return mean, std


def _random_model(seed: int, size: int) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=size,
        patch_size=PATCH,
    )
    with torch.random.fork_rng(devices=[]):  # its own initialisation, which is not kept
        model: nn.Module = Dinov2Model(config)
    return fill_random(model, seed)


def vggt_stream(last_FNE: Tensor) -> Tensor:
    """The state [F,N,C] in which VGGT's aggregator leaves its tokens, of its last outputs [F,N,2C].

    Those are two halves: the tokens after the last attention within the frame, and after the last attention over all
    frames. The second is made from the first, and over a single frame both see the same tokens: the first half is the
    state one block earlier, which its heads take as well and a policy can do without. All tokens are kept: the
    camera's, four registers, then the patches row by row.
    """
    return last_FNE[..., last_FNE.shape[-1] // 2 :]


@torch.inference_mode()
def vggt_tokens(vggt: VGGT, rgb_F3HW: Tensor) -> Tensor:
    """`vggt_stream` of frames [F,3,H,W] in [0, 1], each alone; no head runs."""
    return vggt_stream(vggt(rgb_F3HW[:, None], ("last_tokens",))["last_tokens"].flatten(0, 1))


def vggt_shape(vggt: VGGT, size: int) -> tuple[int, int]:
    """Tokens and channels of `vggt_tokens` for frames of `size` pixels."""
    from stages.vggt.aggregator import NUM_SPECIAL

    return NUM_SPECIAL + math.prod([size // vggt.config.patch_size] * 2), vggt.config.embed_dim
