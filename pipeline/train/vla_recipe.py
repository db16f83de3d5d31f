"""The recipes of `cla train vla`: what each is for, and the measured or published reasons of its numbers."""

from dataclasses import replace

from pipeline.train.policy_recipe import ActRecipe, PolicyRecipe, VlaRecipe
from pipeline.train.policy_sections import (
    AugmentSection,
    BackboneSection,
    EncodersSection,
    MomentsSection,
    RecoverySection,
)
from pipeline.train_config import TrainSection
from stages.act import ACTConfig
from stages.heads.act import ACTHeadConfig
from stages.heads.chunk import ChunkConfig
from stages.heads.diffusion import DiffusionHeadConfig
from stages.heads.latent import LatentConfig
from stages.language import LanguageConfig
from stages.pointing import PointingConfig
from stages.resnet import ResNetConfig
from stages.vision import ConcertoConfig, TowerConfig, VGGTTokensConfig, VisionConfig
from stages.vla import AdapterConfig, VLAConfig

_SECTION = TrainSection(
    steps=50_000,
    batch=64,
    lr=1e-4,
    warmup=1000,
    weight_decay=0.01,
    beta2=0.95,
    precision="bfloat16",
    ema=0.999,
    workers=8,
    validate_every=2000,
)
"""Of the recipes for a GPU."""

_PIXELS = AugmentSection(shift=0.04, brightness=0.2, contrast=0.2, saturation=0.2)
"""For trained vision: DrQ's 4 of 84 pixels (Kostrikov et al., ICLR 2021), and colours."""

_SMALL_TEXT = EncodersSection(text="sentence-transformers/all-MiniLM-L6-v2")

_TINY = EncodersSection(text="random:0", tower="random:0", concerto="builtin:concerto_tiny", vggt="builtin:vggt_tiny")
"""Of the extraction recipes `rgbd_tiny` and `robot_tiny`."""

_TABLETOP = VLAConfig(
    dim=128,
    depth=2,
    heads=4,
    hidden=256,
    queries=8,
    horizon=10,
    state=8,
    action=7,
    language=LanguageConfig(channels=128, hidden=128),
    adapter=AdapterConfig(channels=64, bottleneck=32, heads=2),
    vision=VisionConfig(
        tower=TowerConfig(channels=64),
        concerto=ConcertoConfig(channels=512, dim=128, layers=1, heads=4, hidden=256),
        vggt=VGGTTokensConfig(channels=64),
    ),
    chunk=ChunkConfig(hidden=128),
    act=ACTHeadConfig(dim=128, heads=4, hidden=256, posterior_layers=2, latent=16),
    diffusion=DiffusionHeadConfig(dim=128, layers=2, heads=4, hidden=256),
    latent=LatentConfig(hidden=128),
)
"""The sizes that the policies for the tabletop world share: minutes of training on two CPU cores."""

_TABLETOP_SECTION = TrainSection(
    steps=6000,
    batch=32,
    lr=5e-4,
    warmup=200,
    ema=0.99,
    workers=0,
    validate_every=1000,
    validate_samples=512,
)


def _of(model: VLAConfig, parts: str) -> VLAConfig:
    """The model that sees these parts of the vision."""
    return replace(model, vision=replace(model.vision, parts=parts))


def _tabletop(name: str, parts: str, *, augment: AugmentSection | None = None, **model: object) -> VlaRecipe:
    """A tiny policy of the tabletop world, its three tasks (or more) balanced."""
    return VlaRecipe(
        name=name,
        train=_TABLETOP_SECTION,
        data=MomentsSection(balance="key"),
        augment=augment or AugmentSection(),
        encoders=_TINY,
        model=replace(_of(_TABLETOP, parts), **model),  # type: ignore[arg-type]
    )


_SLOTS = VisionConfig(
    parts="pointing",
    pointing=PointingConfig(
        features=0, points=512, hidden=32, shape=32, over=0.06, relation=256, word_noise=1.0, task_noise=1.0
    ),
)

_TABLETOP_3D = VlaRecipe(
    name="tabletop_vla_3d",
    train=TrainSection(
        steps=6000,
        batch=64,
        lr=1e-3,
        warmup=200,
        ema=0.995,
        workers=1,
        validate_every=1000,
        validate_samples=1024,
    ),
    data=MomentsSection(balance="key"),
    augment=AugmentSection(mirror=True),
    recovery=RecoverySection(radians=0.35),
    encoders=_TINY,
    model=replace(
        _TABLETOP,
        vision=_SLOTS,
        depth=1,
        queries=4,
        horizon=20,
        frame="hand",
        normalise="mean_std",
        auxiliary=0.1,
        word_dropout=0.5,
        chunk=ChunkConfig(hidden=256, error="huber"),
    ),
)
"""The 3D policy of the tabletop world: Concerto's points, at which slots point by words. See docs/policies.md."""


def _recipes() -> list[PolicyRecipe]:
    plain = VLAConfig()
    return [
        # About 50M trained: pixels, the graph, a chunk; words of a small language model.
        VlaRecipe(
            name="vla_simple",
            train=_SECTION,
            augment=_PIXELS,
            encoders=_SMALL_TEXT,
            model=replace(_of(plain, "patch"), language=LanguageConfig(channels=384)),
        ),
        # About 200M with the frozen towers: the same trunk on DINOv2's patches and CLIP's words.
        VlaRecipe(
            name="vla_dinov2",
            train=_SECTION,
            encoders=EncodersSection(text="laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
            model=replace(_of(plain, "tower"), language=LanguageConfig(channels=512)),
        ),
        # Everything: DINOv2's patches and Qwen3's words in a sequence that looks at VGGT's tokens in every layer.
        VlaRecipe(name="vla_full", train=_SECTION, model=replace(_of(plain, "tower"), backbone="vggt")),
        # The reason this project exists: Concerto's 3D tokens, the words, the graph.
        VlaRecipe(name="vla_3d", train=_SECTION, model=_of(plain, "concerto")),
        # The published numbers of ACT; horizon 50 by model.horizon=50.
        ActRecipe(
            name="act",
            train=TrainSection(
                steps=100_000,
                batch=8,
                lr=1e-5,
                lr_final=1.0,
                warmup=0,
                weight_decay=1e-4,
                beta2=0.999,
                clip=10.0,
                workers=4,
                validate_every=2000,
            ),
            backbone=BackboneSection(weights="microsoft/resnet-18"),
            model=ACTConfig(),
        ),
        _tabletop("tabletop_vla_simple", "patch", augment=_PIXELS),
        _tabletop("tabletop_vla_dinov2", "tower"),
        _tabletop("tabletop_vla_full", "tower", backbone="vggt"),
        _TABLETOP_3D,
        ActRecipe(
            name="tabletop_act",
            train=_TABLETOP_SECTION.model_copy(update={"batch": 16, "lr": 2e-4}),
            data=MomentsSection(balance="key"),
            augment=_PIXELS,
            encoders=_TINY,
            model=ACTConfig(
                horizon=20,
                state=8,
                action=7,
                dim=128,
                heads=4,
                hidden=256,
                layers=2,
                posterior_layers=2,
                latent=16,
                language=LanguageConfig(channels=128, hidden=128),
                # from random weights, a picture's own statistics in the norms; see `stages.resnet`
                resnet=ResNetConfig(
                    stem=16, widths=(16, 32, 64, 128), depths=(1, 1, 1, 1), norm="group", size=(112, 112)
                ),
            ),
        ),
    ]


VLA_RECIPES: dict[str, PolicyRecipe] = {recipe.name: recipe for recipe in _recipes()}
