"""The recipes of `cla train laq`, with the model's own config inside."""

from dataclasses import replace

from pipeline.config import CodebookSection, PairsSection, SplitSection, TrainRecipe, TrainSection
from stages.laq import LAQConfig


class LaqRecipe(TrainRecipe):
    """Everything that decides what `cla train laq` learns. `model.channels` follows the store."""

    pairs: PairsSection = PairsSection()
    split: SplitSection = SplitSection()
    codebook: CodebookSection = CodebookSection()
    model: LAQConfig = LAQConfig()

    def with_channels(self, channels: int) -> "LaqRecipe":
        """The recipe for a store with that many channels a token."""
        return self.model_copy(update={"model": replace(self.model, channels=channels)})


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
    # For a CPU, the demo and the tests.
    "laq_tiny": LaqRecipe(
        name="laq_tiny",
        train=TrainSection(
            steps=6000, batch=32, lr=5e-4, warmup=200, workers=1, validate_every=500, validate_samples=512
        ),
        pairs=PairsSection(offset=0.5),
        model=LAQConfig(
            dim=96,
            heads=4,
            hidden=192,
            s2d_layers=1,
            spatial_layers=1,
            temporal_layers=1,
            decoder_layers=2,
            coords="both",
            code_dim=16,
        ),
    ),
}
