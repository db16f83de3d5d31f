import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from policy_store_factory import ACTION, LANGUAGE, SMALL, demonstrations, label_file, policy_store
from train_factory import StopAt, run_in_two_processes

from data_specs.batches import PolicyBatch
from pipeline.config import RequestError, override
from pipeline.recipes import vla_recipe
from pipeline.store.loader import Store
from pipeline.train.launch import TrainRequest, train
from pipeline.train.metrics import read_metrics
from pipeline.train.policy_recipe import ActRecipe, PolicyRecipe, VlaRecipe
from pipeline.train.progress import SilentReporter
from pipeline.train.run import Run
from pipeline.train.task import Step
from pipeline.train.vla import VlaTask, action_errors
from pipeline.train.vla_command import VlaSources, open_task, run_vla
from stages.draw import Draw
from stages.vla import VLA


def small(*assignments: str, name: str = "vla_3d") -> PolicyRecipe:
    return override(vla_recipe(name), [*SMALL, *assignments])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return policy_store(tmp_path_factory.mktemp("stores") / "a", demonstrations(vision=True, views=True))


def learn(
    store: Store | Sequence[Store], out: Path, mode: Any = "new", recipe: PolicyRecipe | None = None, **more: Any
) -> Run:
    stores = [store] if isinstance(store, Store) else store
    sources = VlaSources(stores=tuple(one.layout.url for one in stores), **more)
    run_vla(recipe or small(), sources, TrainRequest(out=out, mode=mode, device="cpu"), SilentReporter())
    return Run.open(out)


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return learn(store, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def codes(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_file(tmp_path_factory.mktemp("codes") / "codes.parquet", store)


@pytest.fixture(scope="module")
def latent(store: Store, codes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = small("model.objective=latent")
    return learn(store, tmp_path_factory.mktemp("runs") / "latent", recipe=recipe, codes=(codes,))


def same_weights(one: Run, other: Run) -> None:
    mine, theirs = (run.load_model(which="last").state_dict() for run in (one, other))
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_model_follows_the_store_and_its_statistics(store: Store, trained: Run) -> None:
    recipe = trained.typed_recipe
    assert isinstance(recipe, VlaRecipe)
    assert (recipe.model.language.channels, recipe.model.vision.concerto.channels) == (LANGUAGE, 16)
    model = trained.load_model()
    assert isinstance(model, VLA)
    statistics = trained.statistics
    q01, q99 = (torch.tensor(statistics["action"][key]) for key in ("q01", "q99"))
    torch.testing.assert_close(model.normaliser.action_scale.centre, (q01 + q99) / 2, atol=1e-6, rtol=0)
    train = [i for i in range(len(store)) if i % 4 != 3]
    paths = np.concatenate([store[i].extra["path_action"] for i in train]).astype(np.float64)
    assert np.allclose(statistics["action"]["std"], paths.std(0)) and statistics["action"]["count"] == len(paths)
    # frozen features are standardised: their mean over the training moments, not 0 and 1
    feat = store.batch(range(4), columns=("tokens",)).need_tokens().feat.float()
    assert (model.parts["concerto"].features.mean - feat.mean(0)).abs().max() < 0.5
    assert not torch.equal(model.language.features.mean, torch.zeros(LANGUAGE))  # type: ignore[union-attr]


def test_a_run_knows_the_frozen_models_and_how_to_run_them(store: Store, trained: Run) -> None:
    kept = trained.store
    assert kept["digest"] == store.digest and kept["url"] == store.layout.url
    assert kept["recipe"] == store.manifest.recipe and kept["dataset"]["name"] == "ssv2"
    assert [model["role"] for model in kept["models"]] == ["vggt", "text"]
    assert kept["sizes"]["A"] == ACTION
    split = json.loads((trained.path / "split.json").read_text())
    assert len(split["train"]) == len(split["labelled"]) == 6 and len(split["validation"]) == 2
    assert trained.split["moments"] == 18


def test_validation_says_the_errors_of_the_actions(store: Store, trained: Run) -> None:
    train, val = (read_metrics(trained.path, split)[-1] for split in ("train", "val"))
    assert {f"error/{i}" for i in range(ACTION)} <= set(val) and "l1" in val
    assert val["error"] == pytest.approx(np.mean([val[f"error/{i}"] for i in range(ACTION)]), abs=1e-6)
    assert "error" not in train and "l1" in train
    assert 0 < val["error"] < 1  # the data's actions have a deviation of 0.1


def test_action_errors_against_the_formula() -> None:
    action = torch.zeros(2, 3, 2)
    is_pad = torch.tensor([[False, False, True], [False, True, True]])
    predicted = torch.tensor([[[1.0, 2], [3, 4], [100, 100]], [[5, 6], [100, 100], [100, 100]]])
    batch = replace(PolicyBatch.example(2), action=action, is_pad=is_pad)
    found = action_errors(predicted, batch)
    assert found["error/0"] == (2 + 5) / 2 and found["error/1"] == (3 + 6) / 2
    assert found["error"] == (3.5 + 4.5) / 2


def test_an_interrupted_run_resumes_bit_for_bit(store: Store, trained: Run, tmp_path: Path) -> None:
    sources = VlaSources(stores=(store.layout.url,))
    with pytest.raises(KeyboardInterrupt):
        train(open_task(small(), sources), TrainRequest(out=tmp_path / "run", device="cpu"), StopAt(1))
    # the run knows its stores
    run_vla(small(), VlaSources(), TrainRequest(out=tmp_path / "run", mode="resume", device="cpu"), SilentReporter())
    same_weights(Run.open(tmp_path / "run"), trained)
    losses = [[line["loss"] for line in read_metrics(path, "train")] for path in (tmp_path / "run", trained.path)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.parametrize("extra", [["train.accumulate=2", "train.ema=0.9"], ["model.token_dropout=0.3"]], ids=str)
def test_two_steps_and_two_more_are_four(store: Store, tmp_path: Path, extra: list[str]) -> None:
    whole = learn(store, tmp_path / "whole", recipe=small(*extra))
    learn(store, tmp_path / "parts", recipe=small(*extra, "train.steps=2"))
    same_weights(learn(store, tmp_path / "parts", "resume", recipe=small(*extra)), whole)


def test_pictures_are_changed_in_training_alone(store: Store) -> None:
    recipe = small("augment.brightness=0.5", name="tabletop_vla_simple")
    task = open_task(recipe, VlaSources(stores=(store.layout.url,)))
    batch = next(iter(task.moments.first(4)))
    seen: list[torch.Tensor] = []

    def model(given: PolicyBatch, draw: Draw | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append(given.images["rgb"])
        return torch.zeros(()), {}

    model.act = lambda batch, draw: batch.action  # type: ignore[attr-defined]
    task.loss(model, batch, Step(number=0, draw=Draw.whole(4)))
    with torch.no_grad():
        task.loss(model, batch, Step(number=0, draw=Draw.whole(4)))
    assert not torch.equal(seen[0], batch.images["rgb"]) and torch.equal(seen[1], batch.images["rgb"])


TWO = """
import sys; sys.path.append({here!r})
from test_vla_task import learn, small
from pathlib import Path
from pipeline.store import open_store
learn(open_store({store!r}), Path({out!r}), recipe=small(*{extra!r}))
"""
TOGETHER = ["train.accumulate=2", "train.ema=0.9", "model.token_dropout=0.2", "model.state_dropout=0.2"]


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(store: Store, tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    run_in_two_processes(TWO.format(here=here, store=store.layout.url, out=str(tmp_path / "two"), extra=TOGETHER))
    learn(store, tmp_path / "one", recipe=small("train.batch=8", *TOGETHER))
    for split, names in (("train", ("loss", "grad_norm", "l1")), ("val", ("loss", "error"))):
        one, two = read_metrics(tmp_path / "one", split), read_metrics(tmp_path / "two", split)
        for name in names:
            assert [line[name] for line in two] == pytest.approx([line[name] for line in one], abs=1e-5), name
    models = [Run.open(tmp_path / name).load_model(which="last").state_dict() for name in ("one", "two")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, atol=5e-5, rtol=0)


def test_codes_are_laid_beside_their_frames(store: Store, codes: Path) -> None:
    task = open_task(small("model.objective=latent"), VlaSources(stores=(store.layout.url,), codes=(codes,)))
    batch = next(iter(task.moments.first(4)))
    assert batch.codes is not None and batch.action is None
    for row, frame in enumerate(batch.frames.index.tolist()):
        clip, place = (int(v[0]) for v in store.clip_of([frame]))
        expected = [(7 * place + len(store.info(clip).key) + k) % 16 for k in range(2)]
        assert batch.codes[row].tolist() == expected
    assert task.describe()["split"]["without"] == 6 and "labelled" not in task.describe()["clips"]
    assert any("6 of 24 training frames have no code" in note for note in task.notes())


def test_latent_pretraining_learns_and_remembers_its_codes(store: Store, latent: Run, codes: Path) -> None:
    assert latent.store["codes"]["files"] == [str(codes)]
    assert latent.store["codes"]["offset_seconds"] == 0.5 and latent.store["codes"]["run"]["name"] == "laq"
    assert "action" not in latent.statistics and "state" in latent.statistics
    lines = read_metrics(latent.path, "val")
    assert "accuracy" in lines[-1] and "error" not in lines[-1]
    model = latent.load_model()
    assert isinstance(model, VLA) and not model.normaliser.action_scale.centre.any()


def test_a_latent_run_resumes_with_its_codes_and_no_others(store: Store, latent: Run, tmp_path: Path) -> None:
    recipe = small("model.objective=latent", "train.steps=6")
    learn(store, latent.path, "resume", recipe=recipe)
    for changed in ({"offset": 1.0}, {"sha": "bb"}):
        other = label_file(tmp_path / "other.parquet", store, **changed)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"learns the codes of run laq .*0\.5 s apart\), and these are of run"):
            learn(store, latent.path, "resume", recipe=recipe, codes=(other,))


def test_the_trunk_of_a_latent_run_becomes_a_policy(store: Store, latent: Run, tmp_path: Path) -> None:
    recipe = small("train.steps=1", "train.lr=1e-12", "train.weight_decay=0", "train.ema=0", "labels.fraction=0.5")
    run = learn(store, tmp_path / "run", recipe=recipe, init_from=latent.path)
    mine, theirs = run.load_model(which="last").state_dict(), latent.load_model().state_dict()
    trunk = [name for name in mine if not name.startswith(("head.", "normaliser."))]
    assert len(trunk) > 20
    for name in trunk:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-6, rtol=0, msg=name)
    assert mine["normaliser.action_scale.spread"].lt(1).all()
    assert run.store["init_from"]["path"] == str(latent.path)
    task = open_task(recipe, VlaSources(stores=(store.layout.url,), init_from=latent.path))
    said = "\n".join(task.notes())
    assert f"from {latent.path} at step" in said and "loaded: " in said and "new: " in said and "head (" in said
    # it goes on without the run that it came from
    resumed = learn(store, run.path, "resume", recipe=override(recipe, ["train.steps=2"]))
    assert resumed.store["init_from"] == run.store["init_from"]
    with pytest.raises(RequestError, match="where a new run starts"):
        learn(store, run.path, "resume", recipe=recipe, init_from=latent.path)


def test_runs_that_are_no_start(store: Store, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"another architecture: .*Give the recipe and overrides"):
        learn(store, tmp_path / "x", recipe=small("model.dim=32"), init_from=trained.path)
    act = override(
        vla_recipe("tabletop_act"), ["model.horizon=4", "model.dim=16", "model.heads=2", "model.resnet.size=[32, 32]"]
    )
    with pytest.raises(RequestError, match=r"is a run of policy vla .*tabletop_act is of policy act"):
        learn(store, tmp_path / "x", recipe=act, init_from=trained.path)
    six = policy_store(tmp_path / "six", demonstrations(action=6), A=6)
    with pytest.raises(RequestError, match=r"run with 7 dimensions of an action, and the store has 6"):
        learn(six, tmp_path / "x", init_from=trained.path)
    with pytest.raises(RequestError, match=r"There is nothing at .*expected a run"):
        learn(store, tmp_path / "x", init_from=tmp_path / "nowhere")
    other = policy_store(tmp_path / "other", demonstrations(), language=False)
    with pytest.raises(RequestError, match=r"lacks what the model needs\. language"):
        learn(other, tmp_path / "x", init_from=trained.path)
    assert not (tmp_path / "x").exists()


def test_a_run_goes_on_with_its_own_robot_and_data(store: Store, trained: Run, tmp_path: Path) -> None:
    six = policy_store(tmp_path / "six", demonstrations(action=6), A=6)
    with pytest.raises(RequestError, match=r"has 7 dimensions of action and .* has 6: another robot"):
        learn(six, trained.path, "resume")
    fewer = policy_store(tmp_path / "fewer", demonstrations(5))
    with pytest.raises(RequestError, match="was trained on other data"):
        learn(fewer, trained.path, "resume")
    with pytest.raises(RequestError, match=r"these keys differ: labels\.fraction"):
        learn(store, trained.path, "resume", recipe=small("labels.fraction=0.5"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"digest": "ee"}, r"No file of codes is of the store at .*; of other stores: .*cla label --run RUN --store"),
        ({"tokens": 3}, r"has 3 codes a pair and the model foresees 2: set model\.latent\.tokens=3"),
        ({"codes": 40}, r"has a code \d+ and the model chooses of 16: set model\.latent\.codes"),
        ({"skip": 4}, r"No frame of the 6 training clips .* has a code to learn"),
    ],
)
def test_codes_that_do_not_fit(store: Store, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = label_file(tmp_path / "codes.parquet", store, **changes)
    sources = VlaSources(stores=(store.layout.url,), codes=(path,))
    with pytest.raises(RequestError, match=sentence):
        open_task(small("model.objective=latent"), sources)


def test_files_of_codes_of_several_stores(store: Store, codes: Path, tmp_path: Path) -> None:
    other = policy_store(tmp_path / "b", demonstrations(3), seed=3)
    urls = (store.layout.url, other.layout.url)
    recipe = small("model.objective=latent")
    mine = label_file(tmp_path / "b.parquet", other)
    task = open_task(recipe, VlaSources(stores=urls, codes=(mine, codes)))
    assert task.describe()["store"]["codes"]["files"] == [str(codes), str(mine)]
    with pytest.raises(RequestError, match=rf"No file of codes is of the store at {urls[1]}|none for the store at"):
        open_task(recipe, VlaSources(stores=urls, codes=(codes,)))
    with pytest.raises(RequestError, match="of different runs or offsets"):
        open_task(recipe, VlaSources(stores=urls, codes=(codes, label_file(tmp_path / "c.parquet", other, offset=1.0))))
    with pytest.raises(RequestError, match="several files of codes of the store"):
        open_task(recipe, VlaSources(stores=urls[:1], codes=(codes, label_file(tmp_path / "d.parquet", store))))
    with pytest.raises(RequestError, match="holds codes of a store that is not trained on"):
        open_task(recipe, VlaSources(stores=urls[:1], codes=(codes, mine)))
    with pytest.raises(RequestError, match=r"give --codes FILE\.parquet, made by cla label"):
        open_task(recipe, VlaSources(stores=urls[:1]))
    with pytest.raises(RequestError, match="--codes are for objective=latent"):
        open_task(small(), VlaSources(stores=urls[:1], codes=(codes,)))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(RequestError, match="is no file of labels"):
        open_task(recipe, VlaSources(stores=urls[:1], codes=(tmp_path / "text.parquet",)))
    with pytest.raises(RequestError, match=r"There is no file .*none\.parquet"):
        open_task(recipe, VlaSources(stores=urls[:1], codes=(tmp_path / "none.parquet",)))


def test_video_without_a_robot_can_be_learned_from(tmp_path: Path) -> None:
    records = demonstrations(chunk=0, state=0, action=0)
    video = policy_store(tmp_path / "video", records, S=0, A=0)
    recipe = small("model.objective=latent", "train.steps=2")
    run = learn(video, tmp_path / "run", recipe=recipe, codes=(label_file(tmp_path / "codes.parquet", video),))
    assert isinstance(run.typed_recipe, VlaRecipe) and run.typed_recipe.model.state == 0
    robot = policy_store(tmp_path / "robot")
    after = learn(robot, tmp_path / "after", recipe=small("train.steps=2"), init_from=run.path)
    assert isinstance(after.typed_recipe, VlaRecipe) and after.typed_recipe.model.state == 8
    with pytest.raises(RequestError, match=r"action_chunk: extract a dataset of a robot with robot\.chunk=4"):
        learn(video, tmp_path / "x")


def act_recipe(*assignments: str) -> ActRecipe:
    sizes = ["model.dim=16", "model.heads=2", "model.hidden=16", "model.layers=1", "model.posterior_layers=1"]
    sizes += ["model.language.hidden=16", "model.horizon=4", "model.resnet.size=[32, 32]"]
    recipe = override(vla_recipe("tabletop_act"), [*sizes, *SMALL[-6:], *assignments])
    assert isinstance(recipe, ActRecipe)
    return recipe


def test_act_learns_from_several_cameras_and_resumes(store: Store, tmp_path: Path) -> None:
    recipe = act_recipe("model.cameras=rgb,wrist", "model.backbone_lr=0.1")
    whole = learn(store, tmp_path / "whole", recipe=recipe)
    assert isinstance(whole.typed_recipe, ActRecipe) and whole.typed_recipe.model.cameras == ("rgb", "wrist")
    learn(store, tmp_path / "parts", recipe=override(recipe, ["train.steps=2"]))
    same_weights(learn(store, tmp_path / "parts", "resume", recipe=recipe), whole)
    assert {"l1", "kl"} <= set(read_metrics(whole.path, "train")[-1])
    assert whole.store["backbone"]["random"] is True
    assert any("RANDOM weights" in note for note in open_task(recipe, _of(store)).notes())


def _of(store: Store) -> VlaSources:
    return VlaSources(stores=(store.layout.url,))


def resnet_folder(folder: Path, stem: int = 16) -> Path:
    """A small classifier in the layout of `transformers`, as `microsoft/resnet-18` is."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=stem, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic", num_labels=5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def test_act_starts_from_weights_in_a_folder(store: Store, tmp_path: Path) -> None:
    folder = resnet_folder(tmp_path / "resnet")
    given = ["model.resnet.norm=frozen_batch", f"backbone.weights={folder}", "train.steps=1", "train.lr=1e-12"]
    run = learn(store, tmp_path / "run", recipe=act_recipe(*given, "train.ema=0"))
    record = run.store["backbone"]
    assert record["name"] == str(folder / "model.safetensors") and len(record["sha256"]) == 64 and not record["random"]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    mine = run.load_model().state_dict()
    name = "embedder.embedder.convolution.weight"
    torch.testing.assert_close(mine[f"backbone.net.{name}"], weights[f"resnet.{name}"], atol=1e-6, rtol=0)


def test_weights_that_cannot_be_had_name_the_alternatives(store: Store, tmp_path: Path) -> None:
    frozen = "model.resnet.norm=frozen_batch"
    with pytest.raises(RequestError, match=r"backbone\.weights=/nowhere/resnet .*random:0.*A\|B names a fallback"):
        learn(store, tmp_path / "x", recipe=act_recipe(frozen, "backbone.weights=/nowhere/resnet"))
    folder = resnet_folder(tmp_path / "resnet")
    task = open_task(act_recipe(frozen, f"backbone.weights=/nowhere/resnet|{folder}"), _of(store))
    assert task.describe()["store"]["backbone"]["name"] == str(folder / "model.safetensors")
    assert any(f"{folder}, a fallback, since: backbone.weights=/nowhere" in note for note in task.notes())
    wide = resnet_folder(tmp_path / "wide", stem=32)
    with pytest.raises(RequestError, match=r"cannot be used: .*expected those of microsoft/resnet-18"):
        learn(store, tmp_path / "y", recipe=act_recipe(frozen, f"backbone.weights={wide}"))
    with pytest.raises(RequestError, match="expected random:SEED"):
        open_task(act_recipe("backbone.weights=random"), _of(store))
    seeded = [open_task(act_recipe("backbone.weights=random:3"), _of(store)) for _ in range(2)]
    models = []
    for seed, one in enumerate(seeded):
        torch.manual_seed(seed)
        models.append(VlaTask.model_of(one.recipe))
        one.start(models[-1], torch.device("cpu"))
    name = "backbone.net.embedder.embedder.convolution.weight"
    assert torch.equal(models[0].state_dict()[name], models[1].state_dict()[name])
    assert not torch.equal(models[0].state_dict()["cells.weight"], models[1].state_dict()["cells.weight"])


def test_mixed_stores_are_known_when_the_run_goes_on(store: Store, tmp_path: Path) -> None:
    other = policy_store(tmp_path / "b", demonstrations(4), seed=3)
    recipe = small("data.weights=1,3")
    whole = learn([store, other], tmp_path / "whole", recipe=recipe)
    learn([store, other], tmp_path / "parts", recipe=override(recipe, ["train.steps=2"]))
    request = TrainRequest(out=tmp_path / "parts", mode="resume", device="cpu")
    run_vla(override(recipe, ["train.steps=4"]), VlaSources(), request, SilentReporter())
    same_weights(Run.open(tmp_path / "parts"), whole)
    assert [one["url"] for one in whole.store["stores"]] == [store.layout.url, other.layout.url]
