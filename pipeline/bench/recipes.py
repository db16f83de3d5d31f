"""Two recipes at once: that of what learns and that of the extraction before it."""

from collections.abc import Sequence
from typing import TypeVar

from pipeline.config import ExtractRecipe, override
from pipeline.train_config import TrainRecipe

RecipeT = TypeVar("RecipeT", bound=TrainRecipe)


def override_both(
    learned: RecipeT, extraction: ExtractRecipe, overrides: Sequence[str]
) -> tuple[RecipeT, ExtractRecipe]:
    """Both with overrides; one is the extraction's unless only the other recipe has its section."""
    only_learned = type(learned).model_fields.keys() - ExtractRecipe.model_fields.keys()
    of_learned = [given for given in overrides if given.partition("=")[0].partition(".")[0] in only_learned]
    of_extraction = [given for given in overrides if given not in of_learned]
    return override(learned, of_learned), override(extraction, of_extraction)
