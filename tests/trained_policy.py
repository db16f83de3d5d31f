"""A store of tabletop demonstrations made by real extraction, and tiny policies trained on it for a few steps."""

from dataclasses import replace
from pathlib import Path

from pipeline.config import ExtractRecipe, override
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.recipes import extract_recipe, vla_recipe
from pipeline.train.launch import TrainRequest
from pipeline.train.policy_recipe import ActRecipe, PolicyRecipe, VlaRecipe
from pipeline.train.progress import SilentReporter
from pipeline.train.vla_command import VlaSources, run_vla
from pipeline.train_config import TrainSection
from stages.language import LanguageConfig
from stages.vision import ConcertoConfig

TASKS = "reach,push"
CLIPS = 10
"""The tenth is held out."""


class Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


def small_extraction() -> ExtractRecipe:
    """Few points of small pictures, two of them a second."""
    small = ["frames.size=56", "frames.fps=2", "frames.max=2", "points.count=256", "points.min_points=100"]
    return override(extract_recipe("rgbd_tiny"), [*small, "robot.chunk=6"])


def demonstrations(out: Path, recipe: ExtractRecipe | None = None, **options: str) -> str:
    """A store of `CLIPS` short clips of demonstrations."""
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, limit=None, out=str(out), format="zarr",
        recipe=recipe or small_extraction(), workers=0, device="cpu",
        options={"clips": str(CLIPS), "seed": "3", "tasks": TASKS, **options},
    )  # fmt: skip
    run_extract(request, Quiet())
    return str(out)


def small_recipe(name: str, steps: int = 2) -> PolicyRecipe:
    """The recipe with parts of a few thousand parameters."""
    recipe = vla_recipe(name)
    section = TrainSection(
        steps=steps, batch=4, lr=1e-3, warmup=1, workers=0, log_every=1, validate_every=steps, validate_samples=8
    )
    language = LanguageConfig(channels=8, hidden=8)
    if isinstance(recipe, ActRecipe):
        resnet = replace(recipe.model.resnet, stem=8, widths=(8, 16), depths=(1, 1), size=(32, 32))
        model = replace(
            recipe.model, dim=16, heads=2, hidden=16, layers=1, posterior_layers=1, latent=4, horizon=6,
            language=language, resnet=resnet,
        )  # fmt: skip
        return recipe.model_copy(update={"train": section, "model": model})
    assert isinstance(recipe, VlaRecipe)
    concerto = ConcertoConfig(dim=16, layers=1, heads=2, hidden=16)
    vla = replace(
        recipe.model, dim=16, depth=1, heads=2, hidden=16, queries=2, horizon=6, language=language,
        vision=replace(recipe.model.vision, concerto=concerto),
    )  # fmt: skip
    return recipe.model_copy(update={"train": section, "model": vla})


def trained_policy(out: Path, store: str, name: str = "tabletop_vla_3d") -> Path:
    """A run of two steps."""
    run_vla(small_recipe(name), VlaSources(stores=(store,)), TrainRequest(out=out, device="cpu"), SilentReporter())
    return out
