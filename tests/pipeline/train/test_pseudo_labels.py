"""Actions of clips without labels, decoded from their latent actions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from policy_store_factory import ACTION, SMALL, demonstration, demonstrations, label_file, policy_store

from data_specs.actions import ACTION_PATH_NAME, CHUNK_COLUMN, CHUNK_NAME
from data_specs.arrays import Array
from data_specs.shards import EXTRA
from pipeline.config import RequestError, override
from pipeline.recipes import vla_recipe
from pipeline.store.loader import Store
from pipeline.train.launch import TrainRequest
from pipeline.train.policy_codes import CodesOfFrames
from pipeline.train.policy_data import PolicyData
from pipeline.train.policy_stores import PolicyStores
from pipeline.train.progress import SilentReporter
from pipeline.train.pseudo_labels import PseudoLabels
from pipeline.train.run import Run
from pipeline.train.vla_command import VlaSources, open_task, run_vla

FRAMES, HORIZON, CLIPS = 30, 2, 12
LABELLED, UNSEEN = np.arange(6), np.arange(6, CLIPS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return policy_store(tmp_path_factory.mktemp("stores") / "a", demonstrations(CLIPS, frames=FRAMES))


@pytest.fixture(scope="module")
def stores(store: Store) -> PolicyStores:
    return PolicyStores([store])


@pytest.fixture(scope="module")
def chunks(stores: PolicyStores) -> Array:
    """The true chunks of all frames."""
    return np.concatenate([stores.array(CHUNK_COLUMN, clip)[:, :HORIZON] for clip in range(CLIPS)])


def codes_of(latents: Array, offset: float = 0.25) -> CodesOfFrames:
    """Codes whose vectors are these, of pairs one frame apart; the last frame of each clip begins no pair."""
    codes = np.zeros((len(latents), 2), dtype=np.int16)
    codes[FRAMES - 1 :: FRAMES] = -1
    latents = np.where(codes[:, :1] < 0, 0, latents)
    return CodesOfFrames(codes=codes, facts=({"offset_seconds": offset},), latents=latents.astype(np.float32))


def fitted(stores: PolicyStores, latents: Array, *, state: bool = False) -> PseudoLabels:
    return PseudoLabels.fit(stores, codes_of(latents), labelled=LABELLED, unseen=UNSEEN, horizon=HORIZON, state=state)


def error(pseudo: PseudoLabels, chunks: Array, states: Array | None = None) -> float:
    moments = np.flatnonzero(pseudo.decoded)
    off = pseudo.chunks(moments, None if states is None else states[moments]) - chunks[moments]
    return float((off**2).mean() / chunks[moments].var())


def test_actions_that_the_codes_tell_are_read_from_them(stores: PolicyStores, chunks: Array) -> None:
    mix = np.random.default_rng(0).normal(size=(HORIZON * ACTION, HORIZON * ACTION))
    latents = chunks.reshape(len(chunks), -1) @ mix
    pseudo = fitted(stores, latents)
    # all frames of the clips without labels, the last too: the pair before it is around it
    assert np.flatnonzero(pseudo.decoded).tolist() == stores.frames_of(UNSEEN).tolist()
    told, shuffled = error(pseudo, chunks), error(fitted(stores, np.random.default_rng(1).permutation(latents)), chunks)
    assert told < 0.15 and shuffled > 0.9
    # what it says of itself is what it does on clips that it has not seen
    assert abs(float(pseudo.error.mean()) - told) < 0.1
    assert pseudo.describe() == {
        "frames": len(UNSEEN) * FRAMES,
        "fitted_to": 6,
        "error": [round(float(value), 4) for value in pseudo.error],
    }


def test_what_is_read_stays_within_what_was_seen(stores: PolicyStores, chunks: Array) -> None:
    latents = chunks.reshape(len(chunks), -1).copy()
    latents[UNSEEN[0] * FRAMES + 3] *= 1000
    pseudo = fitted(stores, latents)
    seen = chunks[: 6 * FRAMES]
    decoded = pseudo.chunks(np.flatnonzero(pseudo.decoded), None)
    assert (decoded >= seen.min((0, 1)) - 1e-6).all() and (decoded <= seen.max((0, 1)) + 1e-6).all()


def test_the_state_tells_where_it_is_asked(stores: PolicyStores, chunks: Array) -> None:
    states = np.concatenate([stores.array("state", clip) for clip in range(CLIPS)])
    nothing = np.zeros((len(states), 3))
    pseudo = fitted(stores, nothing, state=True)
    moments = np.flatnonzero(pseudo.decoded)
    assert not np.allclose(pseudo.chunks(moments, states[moments]), pseudo.chunks(moments, states[moments] + 1))
    without = fitted(stores, nothing).chunks(moments, None)
    assert np.allclose(without[1:-1], without[1:-1].mean(0), atol=0.05)


def recipe_and_codes(store: Store, path: Path, *overrides: str, seed: int = 0) -> tuple[PolicyData, Path]:
    """The data of a small recipe with pseudo-labels, and its file of codes with latents."""
    label_file(path, store, offset=0.5)
    table = pq.read_table(path)
    vectors = np.random.default_rng(seed).normal(size=(table.num_rows, 6)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 6)
    pq.write_table(table.append_column("quantised", column), path)
    recipe = override(vla_recipe("vla_3d"), [*SMALL, "labels.max_clips=3", "labels.pseudo=true", *overrides])
    task = open_task(recipe, VlaSources(stores=(store.layout.url,), codes=(path,)))
    assert isinstance(task.moments, PolicyData)
    return task.moments, path


def test_the_other_clips_are_trained_on_with_what_is_read(store: Store, tmp_path: Path) -> None:
    data, _ = recipe_and_codes(store, tmp_path / "codes.parquet")
    chosen, pseudo = data.chosen, data.pseudo
    assert pseudo is not None and chosen.labelled is not None
    assert len(chosen.labelled) == 3 and set(chosen.unseen) == set(chosen.split.train) - set(chosen.labelled)
    for moments, theirs in ((chosen.train, True), (chosen.held_out, False)):
        batch = data.reader[moments]
        clip, chunk = data.stores.clip_of(moments), batch.need_action()[0].numpy()
        states = batch.need_state().numpy()
        for row, moment in enumerate(moments):
            true = data.stores.array(CHUNK_COLUMN, int(clip[row]))[moment - data.stores.start[clip[row]]][:4]
            if theirs and clip[row] in chosen.unseen:
                assert np.array_equal(chunk[row], pseudo.chunks(moments[[row]], states[[row]])[0])
                assert not np.allclose(chunk[row], true)
            else:
                assert np.array_equal(chunk[row], true)
    # statistics are of labels alone, never of what was decoded or of actions that nobody has seen
    few = [data.stores.array(EXTRA + ACTION_PATH_NAME, int(clip)) for clip in chosen.labelled]
    assert np.allclose(data.statistics()["action"]["mean"], np.concatenate(few).astype(np.float64).mean(0))
    described = data.describe()
    assert len(described["clips"]["pseudo"]) == described["split"]["pseudo"] == len(chosen.unseen)
    assert described["store"]["pseudo"] == pseudo.describe()
    assert any("have pseudo-labels" in note for note in chosen.notes)


def test_actions_of_clips_without_labels_are_never_looked_at(tmp_path: Path) -> None:
    records = demonstrations(8, frames=12)
    first = policy_store(tmp_path / "a", records)
    data, _ = recipe_and_codes(first, tmp_path / "a.parquet")
    unseen = {data.stores.keys[clip] for clip in data.chosen.unseen}
    for record in records:
        if record.key in unseen:
            record.extra[CHUNK_NAME][:] = 0.5
            record.extra[ACTION_PATH_NAME][:] = 0.5
    other = policy_store(tmp_path / "b", records)
    changed, _ = recipe_and_codes(other, tmp_path / "b.parquet")
    one, two = (made.reader[made.chosen.train] for made in (data, changed))
    assert torch.equal(one.need_action()[0], two.need_action()[0])
    assert data.statistics() == changed.statistics()


def test_stores_with_chunks_of_several_lengths(store: Store, tmp_path: Path) -> None:
    longer = policy_store(tmp_path / "b", [demonstration(f"b{i}", frames=FRAMES, seed=i, chunk=9) for i in range(4)])
    both = PolicyStores([store, longer])
    true = np.concatenate([both.array(CHUNK_COLUMN, clip)[:, :HORIZON] for clip in range(len(both))])
    latents = true.reshape(len(true), -1)
    labelled, unseen = np.r_[LABELLED, 12:14], np.r_[UNSEEN, 14:16]
    pseudo = PseudoLabels.fit(both, codes_of(latents), labelled=labelled, unseen=unseen, horizon=HORIZON, state=False)
    assert error(pseudo, true) < 0.15


def test_where_every_clip_is_labelled_nothing_is_decoded(store: Store, tmp_path: Path) -> None:
    data, _ = recipe_and_codes(store, tmp_path / "codes.parquet", "labels.max_clips=0")
    assert data.pseudo is not None and not data.pseudo.decoded.any() and not len(data.chosen.unseen)
    assert len(data.chosen.train) == len(data.chosen.split.train) * (FRAMES - 1)


def test_a_run_remembers_its_codes_and_resumes(store: Store, tmp_path: Path) -> None:
    _, path = recipe_and_codes(store, tmp_path / "codes.parquet")
    recipe = override(vla_recipe("vla_3d"), [*SMALL, "labels.max_clips=3", "labels.pseudo=true"])
    out = tmp_path / "run"
    whole = run_vla(
        recipe, VlaSources(stores=(store.layout.url,), codes=(path,)), TrainRequest(out=out, device="cpu"),
        SilentReporter(),
    )  # fmt: skip
    assert whole.steps == 4 and whole.val["error"] > 0
    run = Run.open(out)
    assert run.store["codes"]["files"] == [str(path)] and run.store["pseudo"]["fitted_to"] == 3
    assert len(json.loads((out / "split.json").read_text())["pseudo"]) == 6
    longer = override(recipe, ["train.steps=6"])
    again = run_vla(longer, VlaSources(), TrainRequest(out=out, device="cpu", mode="resume"), SilentReporter())
    assert again.steps == 6


def test_what_pseudo_labels_need(store: Store, tmp_path: Path) -> None:
    url = (store.layout.url,)
    recipe = override(vla_recipe("vla_3d"), [*SMALL, "labels.pseudo=true"])
    with pytest.raises(RequestError, match=r"labels\.pseudo are taught by the codes .* cla label --run"):
        open_task(recipe, VlaSources(stores=url))
    bare = label_file(tmp_path / "bare.parquet", store)
    with pytest.raises(RequestError, match=r"has the codes alone, .* cla label --embeddings"):
        open_task(recipe, VlaSources(stores=url, codes=(bare,)))
    with pytest.raises(RequestError, match=r"objective=latent or labels\.pseudo=true"):
        open_task(override(recipe, ["labels.pseudo=false"]), VlaSources(stores=url, codes=(bare,)))
    with pytest.raises(RequestError, match="leave one out"):
        open_task(override(recipe, ["model.objective=latent"]), VlaSources(stores=url, codes=(bare,)))
    with pytest.raises(RequestError, match="1 is labelled: give 2 or more"):
        recipe_and_codes(store, tmp_path / "codes.parquet", "labels.max_clips=1")
