import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from motion_arrays import with_motion
from store_factory import small_record, small_store
from train_factory import StopAt, run_in_two_processes

from data_specs.actions import ACTION_NAME
from pipeline.config import FailedError, RequestError, override
from pipeline.store import open_store
from pipeline.store.loader import Store
from pipeline.train.laq import LaqTask
from pipeline.train.laq_recipe import LAQ_RECIPES, LaqRecipe
from pipeline.train.launch import TrainRequest, train
from pipeline.train.loop import TrainSummary
from pipeline.train.metrics import read_metrics
from pipeline.train.progress import SilentReporter
from pipeline.train.run import Run
from pipeline.train.task import BatchPlan
from stages.laq import LatentActionModel

SMALL = [
    "model.dim=16",
    "model.heads=2",
    "model.hidden=16",
    "model.decoder_layers=1",
    "model.codes=24",
    "model.code_dim=4",
    "pairs.offset=0.5",
    "train.steps=4",
    "train.batch=4",
    "train.warmup=8",
    "train.workers=0",
    "train.log_every=1",
    "train.validate_every=2",
    "codebook.init_samples=8",
    "codebook.replace_every=1",
]


def small_recipe(*assignments: str) -> LaqRecipe:
    return override(LAQ_RECIPES["laq_tiny"], [*SMALL, *assignments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of five frames a quarter of a second apart; two are of the store's own validation split."""
    path = tmp_path_factory.mktemp("stores") / "store"
    splits = ["val" if i % 4 == 3 else "train" for i in range(8)]
    small_store(
        path, records=[with_motion(small_record(f"k{i}", frames=5, split=split), i) for i, split in enumerate(splits)]
    )
    return path


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return open_store(str(folder))


def run_laq(store: Store, out: Path, mode: Any = "new", recipe: LaqRecipe | None = None) -> TrainSummary:
    request = TrainRequest(out=out, mode=mode, device="cpu")
    return train(LaqTask(recipe or small_recipe(), store), request, SilentReporter())


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run_laq(store, out)
    return out


def taken(task: LaqTask, batches: int, start: int = 0) -> list[list[tuple[int, int]]]:
    """Frames of the first batches of the task."""
    found: Iterator[Any] = task.batches(BatchPlan(batch=4, start=start))
    return [
        list(zip(batch.first.index.tolist(), batch.second.index.tolist(), strict=True))
        for _, batch in zip(range(batches), found, strict=False)
    ]


def test_an_epoch_takes_every_training_pair_once_in_another_order(store: Store) -> None:
    task = LaqTask(small_recipe(), store)
    assert len(task.pairs) == 6 * 3  # six clips, three first frames half a second before another
    pairs = [pair for batch in taken(task, 9) for pair in batch]
    expected = set(zip(task.pairs.first.tolist(), task.pairs.second.tolist(), strict=True))
    assert set(pairs[:18]) == set(pairs[18:]) == expected
    assert pairs[:18] != pairs[18:]


def test_the_order_goes_on_in_the_middle_of_an_epoch(store: Store) -> None:
    recipe = small_recipe("pairs.jitter=0.25", "pairs.motion=0.5")
    whole = taken(LaqTask(recipe, store), 12)
    assert taken(LaqTask(recipe, store), 7, start=20) == whole[5:]
    assert taken(LaqTask(small_recipe("seed=1"), store), 3) != taken(LaqTask(small_recipe(), store), 3)


def test_loader_processes_give_the_same_batches(store: Store) -> None:
    task = LaqTask(small_recipe("train.workers=2"), store)
    assert taken(task, 6) == taken(LaqTask(small_recipe(), store), 6)


def test_jitter_draws_other_partners_every_epoch_and_stays_in_the_clip(store: Store) -> None:
    task = LaqTask(small_recipe("pairs.jitter=0.25"), store)
    pairs = np.array([pair for batch in taken(task, 18) for pair in batch])
    clips = store.clip_of(pairs[:, 0])[0], store.clip_of(pairs[:, 1])[0]
    assert np.array_equal(*clips)
    apart = store.time[pairs[:, 1]] - store.time[pairs[:, 0]]
    assert set(apart.tolist()) == {0.25, 0.5, 0.75}
    assert sorted(pairs[:18, 0]) == sorted(pairs[18:36, 0]) == task.pairs.first.tolist()


def test_pairs_with_motion_come_oftener(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_first(_store: Store, pairs: Any) -> Any:
        return np.where(np.arange(len(pairs)) == 0, float(len(pairs)), 0.0)

    monkeypatch.setattr("pipeline.train.laq.motion_weights", only_the_first)
    always = LaqTask(small_recipe("pairs.motion=1"), store)
    one = (int(always.pairs.first[0]), int(always.pairs.second[0]))
    assert {pair for batch in taken(always, 5) for pair in batch} == {one}
    half = [pair for batch in taken(LaqTask(small_recipe("pairs.motion=0.5"), store), 45) for pair in batch]
    assert 60 < half.count(one) < 120 and len(set(half)) > 9


def test_validation_takes_held_out_clips_only(store: Store) -> None:
    task = LaqTask(small_recipe(), store)
    held_out = {key for batch in task.validation_batches(0, 1) for key in task.keys(batch)}
    assert held_out == {"k3", "k7"}
    assert held_out.isdisjoint(task.keys(next(iter(task.batches(BatchPlan(batch=18))))))
    shares = [sum(len(batch) for batch in task.validation_batches(rank, 2)) for rank in (0, 1)]
    assert sum(shares) == 6 and min(shares) > 0
    few = LaqTask(small_recipe("train.validate_samples=2"), store)
    assert sum(len(batch) for batch in few.validation_batches(0, 1)) == 2


def test_a_run_says_what_it_is_made_from(store: Store, trained: Path) -> None:
    run = Run.open(trained)
    assert (run.task, run.recipe, run.store_digest, run.step) == ("laq", "laq_tiny", store.digest, 4)
    assert run.store["sizes"]["C"] == run.config["model"]["channels"] == 16
    assert run.store["models"][0]["role"] == "vggt"
    assert run.split["rule"] == "the store's splits" and (run.split["train"], run.split["validation"]) == (6, 2)
    assert json.loads((trained / "split.json").read_text())["validation"] == ["k3", "k7"]
    assert run.typed_recipe == small_recipe().for_store(channels=16)
    assert {"torch", "concerto-laq"} <= set(run.record.versions)


def test_the_log_speaks_of_codes(trained: Path) -> None:
    lines = read_metrics(trained, "train")
    assert {"codes_used", "perplexity", "perplexity_total", "loss/features", "codes_replaced"} <= set(lines[0])
    assert all(1 <= line["perplexity"] <= line["codes_used"] + 1e-3 <= 24 + 1e-3 for line in lines)
    assert lines[0]["perplexity"] == lines[0]["perplexity_total"]
    assert {"loss", "loss/features", "copy/features"} <= set(read_metrics(trained, "val")[0])


def test_the_model_of_a_run_is_loaded_strictly(trained: Path, store: Store, tmp_path: Path) -> None:
    run = Run.open(trained)
    before = torch.get_rng_state()
    model = run.load_model("cpu", "last")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model, LatentActionModel) and not model.training
    batch = store.pair_view(store.pairs(0.5), model.columns)[0]
    assert model.encode(batch).codes.shape == (1, 4)
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    weights = copy / "checkpoints" / json.loads((copy / "checkpoints.json").read_text())["best"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FailedError, match=r"model\.safetensors cannot be used"):
        Run.open(copy).load_model()
    record = json.loads((copy / "run.json").read_text())
    record["config"]["model"]["wings"] = 2
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(FailedError, match=r"reads otherwise the recipe .* \(model\.wings\)"):
        Run.open(copy).load_model()


def test_codes_and_statistics_start_from_data(store: Store) -> None:
    task = LaqTask(small_recipe(), store)
    torch.manual_seed(0)
    model = task.model_of(task.recipe)
    task.start(model, torch.device("cpu"))
    batch = next(iter(task.batches(BatchPlan(batch=8))))
    feat = batch.first.need_tokens().feat.float()
    torch.testing.assert_close(model.features.mean, feat.mean(0), atol=0.3, rtol=0)
    latents = model.encode(batch).continuous.flatten(0, 1)
    assert torch.cdist(model.quantiser.codebook, latents).min(1).values.max() < latents.std()
    assert len(model.quantiser.codebook.unique(dim=0)) == 24
    again = task.model_of(task.recipe)
    again.load_state_dict({**model.state_dict(), "quantiser.codebook": torch.zeros(24, 4)})
    LaqTask(small_recipe(), store).start(again, torch.device("cpu"))
    assert torch.equal(again.quantiser.codebook, model.quantiser.codebook)


def test_codes_are_replaced_until_the_schedule_ends(store: Store) -> None:
    task = LaqTask(
        small_recipe("train.steps=10", "codebook.replace_every=2", "codebook.replace_until=0.5", "model.codes=8"), store
    )
    model = task.model_of(task.recipe)
    changed = []
    for number in range(1, 11):
        model.quantiser.window[:] = torch.tensor([5, 0, 3, 1, 1, 1, 1, 1])
        before = model.quantiser.codebook.clone()
        task.after_step(model, number)
        changed.append(not torch.equal(model.quantiser.codebook, before))
    assert [number for number, did in enumerate(changed, 1) if did] == [2, 4]
    assert task.log_metrics(model)["codes_replaced"] == 2 and task.log_metrics(model)["codes_replaced"] == 0


def test_a_collapsing_codebook_is_warned_of_now_and_then(store: Store) -> None:
    task = LaqTask(small_recipe("train.warmup=10", "train.log_every=50", "model.codes=8"), store)
    assert task.warnings({"perplexity": 1.5}, 5) == []
    assert task.warnings({"perplexity": 7.0}, 50) == []
    (sentence,) = task.warnings({"perplexity": 1.5}, 100)
    assert "perplexity 1.5 at step 100 is under 0.25 of 8 codes" in sentence and "codebook.replace_every" in sentence
    assert task.warnings({"perplexity": 1.5}, 150) == []
    assert len(task.warnings({"perplexity": 1.5}, 1200)) == 1


def same_runs(one: Path, other: Path) -> None:
    mine, theirs = (Run.open(path).load_model(which="last").state_dict() for path in (one, other))
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    losses = [[line["loss"] for line in read_metrics(path, "train")] for path in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_an_interrupted_laq_run_resumes_bit_for_bit(store: Store, trained: Path, tmp_path: Path) -> None:
    task, request = LaqTask(small_recipe(), store), TrainRequest(out=tmp_path, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(task, request, StopAt(1))
    run_laq(store, tmp_path, "resume")
    assert sum(line["codes_replaced"] for line in read_metrics(tmp_path, "train")) > 0
    same_runs(tmp_path, trained)


def test_two_steps_and_two_more_are_four(store: Store, tmp_path: Path) -> None:
    never = "codebook.replace_every=100"  # its schedule follows the number of steps
    for name, steps in (("parts", 2), ("whole", 4)):
        run_laq(store, tmp_path / name, recipe=small_recipe(f"train.steps={steps}", never))
    run_laq(store, tmp_path / "parts", "resume", small_recipe(never))
    same_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("pairs.offset=3", r"no pairs at pairs\.offset=3: .*longest of 8 clips spans 1 s; ask for a smaller offset"),
        ("pairs.jitter=0.5", r"pairs\.jitter=0\.5 must be under pairs\.offset=0\.5"),
        ("model.heads=3", "cannot be built: .*3 heads"),
    ],
)
def test_what_does_not_fit_the_store_is_a_sentence(store: Store, assignment: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        LaqTask(small_recipe(assignment), store)


def test_a_store_without_clips_to_train_on(tmp_path: Path) -> None:
    small_store(tmp_path, records=[small_record("a", frames=5, split="test")])
    with pytest.raises(RequestError, match=r"no clips to train on; its splits are: test"):
        LaqTask(small_recipe(), open_store(str(tmp_path)))


def test_training_clips_that_are_too_short(tmp_path: Path) -> None:
    records = [small_record("a", frames=2, split="train"), small_record("b", frames=5, split="val")]
    small_store(tmp_path, records=[with_motion(record) for record in records])
    with pytest.raises(RequestError, match=r"None of the 1 training clips of .* has frames 0\.5 s apart"):
        LaqTask(small_recipe(), open_store(str(tmp_path)))


TWO = """
from test_laq_task import run_laq, small_recipe
from pathlib import Path
from pipeline.store import open_store
run_laq(open_store({store!r}), Path({out!r}), recipe=small_recipe("train.accumulate=2", "train.ema=0.9"))
"""


def test_two_processes_learn_what_one_learns_with_the_doubled_batch(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    run_in_two_processes(code + TWO.format(store=str(folder), out=str(tmp_path / "two")))
    run_laq(store, tmp_path / "one", recipe=small_recipe("train.batch=8", "train.accumulate=2", "train.ema=0.9"))
    for split, names in (("train", ("loss", "grad_norm", "perplexity", "codes_replaced")), ("val", ("loss",))):
        one, two = read_metrics(tmp_path / "one", split), read_metrics(tmp_path / "two", split)
        for name in names:
            assert [line[name] for line in two] == pytest.approx([line[name] for line in one], abs=1e-5), name
    models = [Run.open(tmp_path / name).load_model(which="last").state_dict() for name in ("one", "two")]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, atol=5e-5, rtol=0)  # Adam divides by small gradients


def labelled_store(path: Path) -> Store:
    """Eight training clips with actions, and two held-out ones."""
    records = []
    for i in range(10):
        record = with_motion(small_record(f"k{i}", frames=5, split="val" if i > 7 else "train", action=2), i)
        sums = np.cumsum(np.full((5, 2), 0.5, dtype=np.float32), axis=0)
        records.append(replace(record, extra={**record.extra, ACTION_NAME: sums}))
    small_store(path, records=records, A=2)
    return open_store(str(path))


def test_only_labelled_training_clips_show_their_actions(tmp_path: Path) -> None:
    store = labelled_store(tmp_path / "store")
    recipe = small_recipe("model.targets.action=1", "labels.fraction=0.25")
    task = LaqTask(recipe, store)
    assert task.recipe.model.actions == 2
    assert task.labelled is not None and len(task.labelled) == 2 and set(task.labelled) <= set(task.split.train)
    batch = next(task.batches(BatchPlan(batch=len(task.pairs))))
    shown = batch.second.extra[ACTION_NAME].isfinite().all(1).numpy()
    clip, _ = store.clip_of(batch.first.index)
    assert shown.any() and np.array_equal(shown, np.isin(clip, task.labelled))
    assert not any(b.second.extra[ACTION_NAME].isfinite().any() for b in task.validation_batches(0, 1))
    summary = train(task, TrainRequest(out=tmp_path / "run", device="cpu"), SilentReporter())
    assert summary.steps == 4
    losses = [line["loss/action"] for line in read_metrics(tmp_path / "run", "train")]
    assert all(np.isfinite(losses)) and max(losses) > 0
    assert sorted(json.loads((tmp_path / "run" / "split.json").read_text())["labelled"]) == sorted(
        store.clips["key"][int(i)].as_py() for i in task.labelled
    )
