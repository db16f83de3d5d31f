import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import ExtractRecipe, RequestError, leaf_names, override
from pipeline.recipes import EXTRACT, extract_recipe


def test_overrides_reach_nested_keys_with_their_types() -> None:
    recipe = override(
        extract_recipe("tiny"),
        ["points.count=4096", "frames.fps=null", "vggt.weights=random:7", "concerto.grid=0.05", "points.sampling=fps"],
    )
    assert (recipe.points.count, recipe.frames.fps, recipe.concerto.grid) == (4096, None, 0.05)
    assert (recipe.vggt.weights, recipe.points.sampling) == ("random:7", "fps")
    assert extract_recipe("tiny").points.count == 8192  # the recipe itself is as it was


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("points.cuont=1", "Did you mean 'points.count'"),
        ("points.count", "expected key=value"),
        ("points.count=many", "points.count"),
        ("points.sampling=halton", "'random', 'random_per_frame', 'fps' or 'voxel'"),
        ("points=1", "Unknown key 'points'"),
        ("concerto.grid=-1", "greater than 0"),
        ("frames.max=1", "every clip would be bad"),
        ("concerto.levels=4", "less than or equal to 3"),
    ],
)
def test_a_wrong_override_is_answered_with_a_sentence(assignment: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        override(extract_recipe("full"), [assignment])


def test_an_unknown_recipe_names_the_choices() -> None:
    with pytest.raises(RequestError, match=r"Did you mean 'tiny'.*full, small, tiny"):
        extract_recipe("tiney")


@pytest.mark.parametrize("name", EXTRACT)
def test_recipes_survive_json_and_are_frozen(name: str) -> None:
    recipe = extract_recipe(name)
    assert recipe.name == name
    assert ExtractRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError):
        recipe.points.count = 1  # type: ignore[misc]


def test_full_has_the_numbers_of_the_description() -> None:
    full = extract_recipe("full")
    assert (full.vggt.model, full.concerto.model) == ("vggt_1b", "base")
    assert (full.frames.size, full.points.count) == (224, 8192)
    assert "random" not in full.vggt.weights + full.concerto.weights


@given(st.text(max_size=30))
def test_no_assignment_escapes_the_request_error(text: str) -> None:
    recipe = extract_recipe("tiny")
    try:
        changed = override(recipe, [text])
    except RequestError as error:
        assert str(error).endswith((".", "?")) or "`--print-config`" in str(error)
    else:
        assert text.split("=")[0] in leaf_names(changed.model_dump())
