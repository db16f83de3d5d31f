import json

import pytest

from pipeline.bench.train import bench_train, choose_recipes
from pipeline.config import RequestError

SMALL = ["geometry.source=sensor", "concerto.weights=random:0", "points.count=512", "points.min_points=256"]


def test_the_ratio_is_that_of_a_step_in_the_loop_to_one_from_the_store() -> None:
    recipe, extraction = choose_recipes("laq_tiny", "tiny", [*SMALL, "model.dim=32", "model.slots=4"])
    table = bench_train(recipe, extraction, pairs=2, rounds=1, device="cpu").as_json()
    seconds = {row["what"]: row["s"] for row in table["rows"]}
    assert seconds["step from the store"] == seconds["read a batch from the store"] + seconds["trained step"]
    looped = seconds["step with the frozen models in the loop"]
    assert looped == seconds["frozen models"] + seconds["trained step"]
    assert table["ratio"] == looped / seconds["step from the store"]
    assert all(row["s/pair"] == row["s"] / 2 for row in table["rows"])
    assert json.loads(json.dumps(table))["recipes"]["laq"]["model"]["dim"] == 32


def test_an_override_goes_to_the_recipe_that_has_its_section() -> None:
    recipe, extraction = choose_recipes("laq_tiny", "tiny", ["pairs.offset=0.5", "points.count=512", "train.lr=0.1"])
    assert (recipe.pairs.offset, recipe.train.lr, extraction.points.count) == (0.5, 0.1, 512)


@pytest.mark.parametrize("wrong", ["pair.offset=1", "pairs.ofset=1"])
def test_an_unknown_key_is_a_wrong_request(wrong: str) -> None:
    with pytest.raises(RequestError, match="Unknown key"):
        choose_recipes("laq_tiny", "tiny", [wrong])


def test_an_offset_longer_than_the_demonstrations_is_a_wrong_request() -> None:
    recipe, extraction = choose_recipes("laq_tiny", "tiny", [*SMALL, "pairs.offset=60"])
    with pytest.raises(RequestError, match=r"pairs\.offset=60 .* set a smaller one"):
        bench_train(recipe, extraction, pairs=1, rounds=1, device="cpu")
