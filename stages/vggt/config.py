"""What a VGGT is made of: widths, depths and the kind of patch embedding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# width, blocks, heads of the DINOv2 backbones with registers (Darcet et al., ICLR 2024), all with patch size 14
DINOV2_SIZES: dict[str, tuple[int, int, int]] = {
    "dinov2_vits14_reg": (384, 12, 6),
    "dinov2_vitb14_reg": (768, 12, 12),
    "dinov2_vitl14_reg": (1024, 24, 16),
}
PATCH_EMBEDS = ("conv", *DINOV2_SIZES)


@dataclass(frozen=True, kw_only=True)
class VGGTConfig:
    """Sizes of a VGGT. The defaults are the released VGGT-1B; the names are those of the golden files.

    Attributes:
        img_size: side in pixels for which position embeddings of the DINOv2 backbone are stored (resized to others).
        patch_size: side of a patch in pixels; image sides must be multiples of it.
        embed_dim: width of the aggregator; the heads see twice as much (frame and global halves).
        depth: pairs of frame and global attention blocks.
        num_heads: attention heads of the aggregator.
        patch_embed: "conv" (one strided convolution) or the name of a DINOv2 backbone.
        camera_trunk_depth, camera_num_heads: blocks and heads of the camera head.
        dpt_features, dpt_out_channels: widths of the dense heads, fused and per level.
        dpt_layers: the four aggregator pairs, counted from 0, whose tokens the dense heads read.
        point_head: whether there is one. Points also follow from depth and camera.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    patch_embed: str = "dinov2_vitl14_reg"
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    dpt_features: int = 256
    dpt_out_channels: tuple[int, ...] = (256, 512, 1024, 1024)
    dpt_layers: tuple[int, ...] = (4, 11, 17, 23)
    point_head: bool = True

    def __post_init__(self) -> None:
        if self.patch_embed not in PATCH_EMBEDS:
            raise ValueError(f"patch_embed is {self.patch_embed!r}, expected one of {', '.join(PATCH_EMBEDS)}")
        if self.patch_embed in DINOV2_SIZES:
            width = DINOV2_SIZES[self.patch_embed][0]
            _require(self.embed_dim == width, f"embed_dim is {self.embed_dim}, {self.patch_embed} needs {width}")
            _require(self.patch_size == 14, f"patch_size is {self.patch_size}, {self.patch_embed} needs 14")
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "camera_num_heads", "dpt_features")
        for name in sizes:
            _require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}, expected at least 1")
        _require(self.camera_trunk_depth >= 0, f"camera_trunk_depth is {self.camera_trunk_depth}, expected at least 0")
        _require(
            self.img_size % self.patch_size == 0,
            f"img_size {self.img_size} is no multiple of patch_size {self.patch_size}",
        )
        _require(
            self.embed_dim % (4 * self.num_heads) == 0,
            f"embed_dim {self.embed_dim} must be a multiple of 4 * num_heads = {4 * self.num_heads}: "
            "rotary positions in two directions turn the channels of a head in fours",
        )
        _require(
            2 * self.embed_dim % self.camera_num_heads == 0,
            f"2 * embed_dim = {2 * self.embed_dim} must be a multiple of camera_num_heads {self.camera_num_heads}",
        )
        _require(len(self.dpt_out_channels) == 4, f"dpt_out_channels {self.dpt_out_channels} must have four entries")
        _require(
            all(width > 0 and width % 4 == 0 for width in self.dpt_out_channels) and self.dpt_features % 8 == 0,
            f"dpt_out_channels {self.dpt_out_channels} must be multiples of 4 and dpt_features {self.dpt_features} "
            "of 8, for the position embedding of the dense heads",
        )
        _require(
            len(self.dpt_layers) == 4 and all(0 <= layer < self.depth for layer in self.dpt_layers),
            f"dpt_layers {self.dpt_layers} must be four numbers from 0 to depth - 1 = {self.depth - 1}",
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VGGTConfig":
        """The config of a golden file or a recipe; what it does not name is as in VGGT-1B.

        Raises:
            ValueError: for a key that no VGGT has, with the keys that there are, or for a value of the wrong type.
        """
        defaults = asdict(VGGT_1B)
        unknown = sorted(set(config) - set(defaults))
        if unknown:
            raise ValueError(f"unknown VGGT config key {', '.join(unknown)}: the keys are {', '.join(defaults)}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
        }
        for key, value in values.items():
            entries = value if isinstance(value, tuple) else (value,)
            default = defaults[key][0] if isinstance(defaults[key], tuple) else defaults[key]
            shaped = isinstance(value, tuple) == isinstance(defaults[key], tuple)
            if not shaped or any(type(entry) is not type(default) for entry in entries):
                raise ValueError(f"VGGT config key {key} is {value!r}, expected something like {defaults[key]!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON has it: `from_dict(to_dict())` is the same config."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


VGGT_1B = VGGTConfig()

# A ViT-S backbone and four pairs: every kind of parameter of VGGT-1B in 1/30 of its size.
VGGT_SMALL = VGGTConfig(
    embed_dim=384,
    depth=4,
    num_heads=6,
    patch_embed="dinov2_vits14_reg",
    camera_trunk_depth=2,
    camera_num_heads=8,
    dpt_features=64,
    dpt_out_channels=(32, 64, 128, 128),
    dpt_layers=(0, 1, 2, 3),
)

# For demonstrations and tests on a CPU.
VGGT_TINY = VGGTConfig(
    img_size=224,
    embed_dim=96,
    depth=4,
    num_heads=4,
    patch_embed="conv",
    camera_trunk_depth=2,
    camera_num_heads=8,
    dpt_features=32,
    dpt_out_channels=(16, 32, 64, 64),
    dpt_layers=(0, 1, 2, 3),
)
