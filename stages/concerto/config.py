"""What a Concerto checkpoint's own `config` says, checked, and the configurations known by name."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from stages.concerto.serialization import ORDERS

# Keys of the published code that this encoder does not read, each with the reason. They are accepted because every
# published checkpoint carries some of them.
IGNORED_KEYS: Mapping[str, str] = {
    "drop_path": "stochastic depth: training only",
    "attn_drop": "dropout: training only",
    "proj_drop": "dropout: training only",
    "shuffle_orders": "the published code shuffles its orders even in eval; extraction never does",
    "enable_flash": "an attention kernel, not a function; torch's scaled_dot_product_attention chooses one",
    "upcast_attention": "precision of the attention logits; float32 and the fused kernels' own accumulation here",
    "upcast_softmax": "precision of the softmax; as above",
    "traceable": "whether a level remembers its parent; `PointTransformerV3.levels` always gives all levels",
    "freeze_encoder": "training only; whoever trains decides `requires_grad`",
    "dec_depths": "the decoder, which encoder mode does not have",
    "dec_channels": "the decoder, which encoder mode does not have",
    "dec_num_head": "the decoder, which encoder mode does not have",
    "dec_patch_size": "the decoder, which encoder mode does not have",
}


@dataclass(frozen=True, kw_only=True)
class ConcertoConfig:
    """Architecture of a PTv3 encoder (Wu et al., Point Transformer V3, CVPR 2024, section 4) under its published names.

    One entry a stage in `enc_*`; `stride` has one entry between each two stages.

    Attributes:
        in_channels: channels of `feat`; 9 for Concerto (coordinate, colour, normal).
        order: serialization orders; block i of a stage attends along order i modulo their number.
        stride: pooling factor on the integer grid before each stage but the first.
        enc_depths, enc_channels, enc_num_head: blocks, width and attention heads of each stage.
        enc_patch_size: most points that attend to each other; a smaller cloud is one patch.
        mlp_ratio: hidden width of the feed-forward layer over the stage's width.
        qkv_bias, qk_scale, layer_scale, pre_norm: as in the published code; `qk_scale` None is head_dim ** -0.5.
        mask_token: whether the checkpoint has the token of masked pre-training. It is loaded and never used.
        enable_rpe, enc_mode: only False and True are supported; the other values need other networks.
    """

    in_channels: int = 9
    order: tuple[str, ...] = ORDERS
    stride: tuple[int, ...] = (2, 2, 2, 2)
    enc_depths: tuple[int, ...] = (3, 3, 3, 12, 3)
    enc_channels: tuple[int, ...] = (48, 96, 192, 384, 512)
    enc_num_head: tuple[int, ...] = (3, 6, 12, 24, 32)
    enc_patch_size: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    mlp_ratio: float = 4
    qkv_bias: bool = True
    qk_scale: float | None = None
    layer_scale: float | None = None
    pre_norm: bool = True
    mask_token: bool = True
    enable_rpe: bool = False
    enc_mode: bool = True

    def __post_init__(self) -> None:
        stages = len(self.enc_depths)
        for name, expected in (
            ("enc_channels", stages),
            ("enc_num_head", stages),
            ("enc_patch_size", stages),
            ("stride", stages - 1),
        ):
            if len(getattr(self, name)) != expected:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries, expected {expected}: enc_depths has {stages}"
                )
        if not stages or min(*self.enc_depths, *self.enc_patch_size, *self.stride, self.in_channels) < 1:
            raise ValueError("enc_depths, enc_patch_size, stride and in_channels must be positive")
        for channels, heads in zip(self.enc_channels, self.enc_num_head, strict=True):
            if channels < 1 or heads < 1 or channels % heads:
                raise ValueError(f"{channels} channels do not split into {heads} heads: change enc_num_head")
        unknown = [order for order in self.order if order not in ORDERS]
        if unknown or not self.order:
            raise ValueError(f"order is {list(self.order)}, expected at least one of {', '.join(ORDERS)}")
        if self.enable_rpe:
            raise ValueError("enable_rpe=True is not supported: the published Concerto checkpoints do not use it")
        if not self.enc_mode:
            raise ValueError("enc_mode=False is not supported: this is the encoder; Concerto has no decoder")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ConcertoConfig":
        """The configuration a checkpoint carries; ValueError names a key that the published code does not have."""
        known = {field.name for field in fields(cls)}
        kept: dict[str, Any] = {}
        for key, value in config.items():
            if key in known:
                kept[key] = tuple(value) if isinstance(value, list) else value
            elif key not in IGNORED_KEYS:
                choices = sorted(known | set(IGNORED_KEYS))
                close = difflib.get_close_matches(key, choices, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"unknown Concerto config key {key!r}.{hint} The choices are {', '.join(choices)}")
        if isinstance(kept.get("order"), str):
            kept["order"] = (kept["order"],)
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """The same configuration as plain data, for `from_dict` and for a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def out_channels(self) -> int:
        """Width of the coarsest features: 512 for the published small and base, 768 for large."""
        return self.enc_channels[-1]


# The published sizes. A checkpoint's own `config` is what counts when weights are loaded; these serve random weights.
SMALL = ConcertoConfig(enc_depths=(2, 2, 2, 6, 2), enc_channels=(32, 64, 128, 256, 512), enc_num_head=(2, 4, 8, 16, 32))
BASE = ConcertoConfig()
LARGE = ConcertoConfig(enc_channels=(64, 128, 256, 512, 768), enc_num_head=(4, 8, 16, 32, 48))

# Ours, for demonstrations and tests on a CPU: 1.2 million parameters, 128 channels. Not a published checkpoint.
TINY = ConcertoConfig(
    enc_depths=(1, 1, 1, 1, 1),
    enc_channels=(16, 32, 64, 96, 128),
    enc_num_head=(1, 2, 4, 6, 8),
    enc_patch_size=(256, 256, 256, 256, 256),
    mask_token=False,
)
