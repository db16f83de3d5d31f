"""The recipes of `cla train laq`, with the model's own config inside."""

from dataclasses import replace

from pipeline.train_config import (
    CodebookSection,
    DataSection,
    LabelsSection,
    PairsSection,
    SplitSection,
    TrainRecipe,
    TrainSection,
)
from stages.laq import LAQConfig
from stages.targets import TargetConfig


class LaqRecipe(TrainRecipe):
    """Everything that decides what `cla train laq` learns. `model.channels` and `actions` follow the store."""

    data: DataSection = DataSection()
    pairs: PairsSection = PairsSection()
    split: SplitSection = SplitSection()
    codebook: CodebookSection = CodebookSection()
    labels: LabelsSection = LabelsSection()
    model: LAQConfig = LAQConfig()

    def for_store(self, *, channels: int, actions: int = 0) -> "LaqRecipe":
        """The recipe for a store with that many channels a token and dimensions of an action."""
        return self.model_copy(update={"model": replace(self.model, channels=channels, actions=actions)})


_TARGETS = TargetConfig(features=0.1, coords=10.0, motion=1.0)

_TINY = LaqRecipe(
    name="laq_tiny",
    train=TrainSection(steps=6000, batch=8, lr=1e-3, warmup=200, workers=0, validate_every=1000, validate_samples=512),
    pairs=PairsSection(offset=1.0),
    model=LAQConfig(
        dim=64,
        heads=4,
        hidden=128,
        s2d_layers=1,
        spatial_layers=1,
        temporal_layers=0,
        decoder_layers=1,
        targets=_TARGETS,
    ),
)

LAQ_RECIPES: dict[str, LaqRecipe] = {
    # About 42M parameters, as the system's description; pairs 2.5 s apart, which is LAPA's 30 frames of Something-
    # Something V2 at 12 frames a second, and its batch, rate and number of steps.
    "laq_full": LaqRecipe(
        name="laq_full",
        train=TrainSection(
            steps=100_000, batch=64, lr=1e-4, warmup=1000, precision="bfloat16", workers=8, validate_every=2000
        ),
        pairs=PairsSection(offset=2.5),
    ),
    # For a CPU, the demo and the tests. What decides here was measured: docs/latent-actions.md.
    "laq_tiny": _TINY,
    # The same with a linear action decoder on the latents and the actions of one clip in twenty. Only labelled pairs
    # have that part of the loss, hence its weight.
    "laq_tiny_labels": _TINY.model_copy(
        update={"name": "laq_tiny_labels", "model": replace(_TINY.model, targets=replace(_TARGETS, action=20.0))}
    ),
}
