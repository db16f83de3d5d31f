"""What a policy sees in closed loop is what it was trained on, bit for bit, through the environment's own adapter."""

import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from batch_equality import assert_equal

from data_specs.records import BadClip
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.evaluate.policy.acting import policy_batch
from pipeline.evaluate.policy.environment import EnvironmentOptions, EnvironmentSpec
from pipeline.evaluate.policy.libero import LIBERO
from pipeline.evaluate.policy.live import LiveEyes, saved_moment
from pipeline.evaluate.policy.sight import Sight
from pipeline.evaluate.policy.tabletop import TABLETOP, TabletopEnvironment
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.recipes import extract_recipe
from pipeline.sim.episode import demonstrate
from pipeline.sim.tasks import find_tasks
from pipeline.store import open_store
from pipeline.store.loader import Store

COLUMNS = (
    "tokens",
    "points/pixel",
    "points/depth",
    "camera/extrinsic",
    "rgb",
    "state",
    "language",
    "vision/eye",
    "views/wrist",
)
SEED, TASK = 5, "push"
RECIPE = override(
    extract_recipe("rgbd_tiny"),
    ["frames.size=112", "frames.fps=1", "points.count=1024", "points.min_points=200", "vision.towers=eye=random:2"],
)


class Quiet(Reporter):
    def update(self, tally: Tally, total: int) -> None:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("live") / "store"
    request = ExtractRequest(
        dataset="tabletop", root=None, split=None, limit=None, out=str(out), format="zarr", recipe=RECIPE, workers=0,
        options={"clips": "1", "seed": str(SEED), "tasks": TASK, "views": "wrist"}, device="cpu",
    )  # fmt: skip
    run_extract(request, Quiet())
    return open_store(str(out))


def eyes_of(store: Store, columns: Sequence[str] = COLUMNS, **changes: object) -> LiveEyes:
    manifest = store.manifest
    recipe = ExtractRecipe.model_validate(manifest.recipe)
    eyes = LiveEyes(
        recipe=recipe.model_dump_json(),
        models=tuple(model.model_dump_json() for model in manifest.models),
        columns=tuple(columns),
        sight=Sight.of(manifest.dataset.model_dump(mode="json"), recipe, columns, TABLETOP),
        device="cpu",
    )
    return replace(eyes, **changes)  # type: ignore[arg-type]


def test_what_is_seen_live_is_what_the_store_has_of_the_same_moments(store: Store) -> None:
    maker = eyes_of(store)
    assert maker.sight == Sight(main="agent", further=(("wrist", "wrist"),), size=112, views_size=112)
    assert pickle.loads(pickle.dumps(maker)) == maker
    eyes, episode = maker(), demonstrate(SEED, 0, find_tasks(TASK))
    environment = TabletopEnvironment(EnvironmentOptions(views=maker.sight.cameras, render_size=maker.sight.size))
    observation = environment.start(episode.scene)
    info = store.info(0)
    assert info.frames >= 3
    moments, step = [], 0
    for time in info.time:
        while step < round(time * TABLETOP.hz):
            observation = environment.step(episode.action[step], look=True).observation or observation
            step += 1
        moments.append(saved_moment(eyes(observation, info.key)))
    live = policy_batch(moments)
    frames = store.batch(range(info.frames), [column for column in COLUMNS if column != "language"])
    table = store.language()
    assert table is not None
    stored = policy_batch([(frames, table.batch([info.text] * info.frames))])
    assert set(live.images) == {"rgb", "wrist"}
    assert_equal(live.images, stored.images)
    assert_equal(live.language, stored.language)
    assert_equal(replace(live.frames, index=stored.frames.index, time=stored.frames.time), stored.frames)


def test_only_the_models_that_are_needed_are_loaded(store: Store) -> None:
    eyes = eyes_of(store, ("rgb", "state"), models=())()
    environment = TabletopEnvironment(EnvironmentOptions(views=("agent",), render_size=112))
    frames, language = saved_moment(eyes(environment.reset(seed=0, index=0, task="reach"), "key"))  # type: ignore[arg-type]
    assert language is None and frames.tokens is None
    assert frames.rgb is not None and frames.state.shape == (1, 8)


def test_other_weights_than_the_runs_are_refused(store: Store) -> None:
    models = [model.model_copy(update={"sha256": "0" * 64}) if model.role == "concerto" else model
              for model in store.manifest.models]  # fmt: skip
    maker = eyes_of(store, models=tuple(model.model_dump_json() for model in models))
    with pytest.raises(RequestError, match=r"as concerto.*give the same weights"):
        maker()


def test_a_picture_of_another_size_is_read_as_a_recording_is(store: Store) -> None:
    sight = eyes_of(store, ("tokens", "rgb")).sight
    large = TabletopEnvironment(EnvironmentOptions(views=("agent",), render_size=160))
    clip = sight.clip(large.reset(seed=0, index=0, task="reach"), "key")
    assert clip.rgb.shape == (1, 112, 112, 3)
    assert clip.depth is not None and clip.depth.shape == (1, 112, 112)
    small = TabletopEnvironment(EnvironmentOptions(views=("agent",), render_size=112))
    same = sight.clip(small.reset(seed=0, index=0, task="reach"), "key")
    assert clip.intrinsic is not None and same.intrinsic is not None
    np.testing.assert_allclose(clip.intrinsic, same.intrinsic, rtol=1e-5)


def test_a_moment_that_extraction_would_reject_is_one_here(store: Store) -> None:
    recipe = override(RECIPE, ["points.too_few=reject", "points.count=20000"])
    eyes = eyes_of(store, ("tokens",), recipe=recipe.model_dump_json())()
    environment = TabletopEnvironment(EnvironmentOptions(views=("agent",), render_size=112))
    with pytest.raises(BadClip, match="usable points"):
        eyes(environment.reset(seed=0, index=0, task="reach"), "key")


@pytest.mark.parametrize(
    ("options", "columns", "spec", "said"),
    [
        ({"view": "frnt"}, ("rgb",), TABLETOP, "has a camera 'frnt', which environment tabletop does not have"),
        ({}, ("views/wirst",), TABLETOP, "Did you mean 'wrist'"),
        ({"view": "agentview"}, ("views/eye_in_hand",), TABLETOP, ""),
        ({"view": "image", "views_size": "96"}, ("views/wrist_image",), LIBERO, ""),
    ],
)
def test_cameras_go_by_the_names_of_datasets(
    options: dict[str, str], columns: tuple[str, ...], spec: EnvironmentSpec, said: str
) -> None:
    dataset = {"name": "libero", "options": options}
    if said:
        with pytest.raises(RequestError, match=said):
            Sight.of(dataset, RECIPE, columns, spec)
        return
    sight = Sight.of(dataset, RECIPE, columns, spec)
    assert sight.cameras == spec.views
    assert sight.views_size == (96 if "views_size" in options else None)
