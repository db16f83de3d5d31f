"""Every recipe of `cla train vla` trains, saves and resumes with no data and no weights; each is tiny here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.recipes import VLA, vla_recipe
from pipeline.train.checkpoint import RunFolder
from pipeline.train.launch import TrainRequest
from pipeline.train.policy_recipe import ActRecipe, PolicyRecipe, VlaRecipe, read_recipe
from pipeline.train.policy_sections import BackboneSection
from pipeline.train.progress import SilentReporter
from pipeline.train.run import Run
from pipeline.train.vla_command import VlaSources, run_vla
from pipeline.train_config import TrainSection
from stages.act import ACTPolicy
from stages.heads.act import ACTHeadConfig
from stages.heads.chunk import ChunkConfig
from stages.heads.diffusion import DiffusionHeadConfig
from stages.heads.latent import LatentConfig
from stages.language import LanguageConfig
from stages.pointing import PointingConfig
from stages.vision import ConcertoConfig, TowerConfig, VGGTTokensConfig
from stages.vla import VLA as VLAPolicy  # noqa: N811
from stages.vla import AdapterConfig

HEADS = ("act", "diffusion")


def tiny(recipe: PolicyRecipe, steps: int = 4) -> PolicyRecipe:
    """The same recipe with parts of a few thousand parameters."""
    section = TrainSection(
        steps=steps,
        batch=2,
        lr=1e-3,
        warmup=1,
        ema=recipe.train.ema,
        workers=0,
        log_every=1,
        validate_every=2,
        weight_decay=recipe.train.weight_decay,
    )
    language = LanguageConfig(channels=8, hidden=8)
    if isinstance(recipe, ActRecipe):
        model = replace(
            recipe.model,
            dim=16,
            heads=2,
            hidden=16,
            layers=1,
            posterior_layers=1,
            latent=4,
            horizon=4,
            language=language if recipe.model.language.channels else recipe.model.language,
            resnet=replace(recipe.model.resnet, stem=16, widths=(16, 16), depths=(1, 1), size=(32, 32)),
        )
        return recipe.model_copy(update={"train": section, "model": model, "backbone": BackboneSection()})
    assert isinstance(recipe, VlaRecipe)
    vision = replace(
        recipe.model.vision,
        tower=TowerConfig(channels=8),
        concerto=ConcertoConfig(channels=12, dim=16, layers=1, heads=2, hidden=16, grid=4),
        vggt=VGGTTokensConfig(channels=8),
        pointing=PointingConfig(channels=12, text=8, hidden=8, key=8, shape=8, relation=16, relations=1),
    )
    vla = replace(
        recipe.model,
        dim=16,
        depth=1,
        heads=2,
        hidden=16,
        queries=4,
        horizon=4,
        vision=vision,
        language=language,
        adapter=AdapterConfig(channels=8, bottleneck=8, heads=2),
        chunk=ChunkConfig(hidden=16),
        act=ACTHeadConfig(dim=16, heads=2, hidden=16, posterior_layers=1, latent=4),
        diffusion=DiffusionHeadConfig(dim=16, layers=1, heads=2, hidden=16, steps=2),
        latent=LatentConfig(hidden=16),
    )
    return recipe.model_copy(update={"train": section, "model": vla})


def run(recipe: PolicyRecipe, out: Path, mode: str = "new") -> None:
    torch.manual_seed(99)  # a run must not depend on what was drawn before it
    request = TrainRequest(out=out, mode=mode, device="cpu")  # type: ignore[arg-type]
    run_vla(recipe, VlaSources(example=mode == "new"), request, SilentReporter())


def check(recipe: PolicyRecipe, folder: Path) -> None:
    """Two steps and two more are four, bit for bit; the run knows its recipe and gives its model back."""
    run(tiny(recipe), folder / "whole")
    run(tiny(recipe, 2), folder / "parts")
    run(tiny(recipe), folder / "parts", "resume")
    whole, parts = (Run.open(folder / name) for name in ("whole", "parts"))
    mine, theirs = (one.load_model(which="last").state_dict() for one in (whole, parts))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    fresh = tiny(recipe).build().state_dict()
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in mine.items())
    assert whole.typed_recipe == tiny(recipe) == read_recipe(whole.config)
    assert RunFolder(folder / "whole").record().task == "vla"
    model, batch = whole.load_model(), tiny(recipe).example(3, seed=5)
    if not recipe.latent:
        assert isinstance(model, (VLAPolicy, ACTPolicy))
        chunk = model.act(batch)
        assert chunk.shape == (3, 4, tiny(recipe).action) and bool(chunk.isfinite().all())


@pytest.mark.parametrize("name", VLA)
def test_every_recipe_trains_two_steps_and_resumes_to_four(name: str, tmp_path: Path) -> None:
    check(vla_recipe(name), tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_does(head: str, tmp_path: Path) -> None:
    recipe = vla_recipe("vla_3d")
    assert isinstance(recipe, VlaRecipe)
    check(recipe.model_copy(update={"model": replace(recipe.model, head=head)}), tmp_path)  # type: ignore[arg-type]


def test_latent_pretraining_does(tmp_path: Path) -> None:
    recipe = vla_recipe("tabletop_vla_simple")
    assert isinstance(recipe, VlaRecipe)
    check(recipe.model_copy(update={"model": replace(recipe.model, objective="latent")}), tmp_path)


@pytest.mark.parametrize("name", VLA)
def test_an_example_holds_what_the_model_reads_and_nothing_else(name: str) -> None:
    recipe = tiny(vla_recipe(name))
    batch, columns = recipe.example(2), recipe.build().columns
    assert (batch.language is not None) == ("language" in columns)
    assert (batch.frames.tokens is not None) == ("tokens" in columns)
    assert {f"vision/{n}" for n in batch.frames.vision} == {c for c in columns if c.startswith("vision/")}
    pictures = {c.removeprefix("views/") for c in columns if c == "rgb" or c.startswith("views/")}
    assert set(batch.images) == pictures
