import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_store_factory import (
    ACTION,
    CHUNK,
    LANGUAGE,
    TEXTS,
    VISION,
    WRIST,
    demonstration,
    demonstrations,
    policy_store,
)

from data_specs.actions import ACTION_PATH_NAME, CHUNK_COLUMN, CHUNK_NAME
from pipeline.config import RequestError
from pipeline.store import writer
from pipeline.store.loader import Store
from pipeline.train import policy_data
from pipeline.train.policy_data import PolicyData
from pipeline.train.policy_recipe import VlaRecipe
from pipeline.train.policy_sections import DemonstrationsSection, MomentsSection
from pipeline.train.policy_stores import PolicyStores
from pipeline.train.task import BatchPlan
from pipeline.train_config import SplitSection, TrainSection

COLUMNS = ("tokens", "language", "state")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight clips of four frames, two of them held out, with frozen encoders and a wrist camera."""
    return policy_store(tmp_path_factory.mktemp("stores") / "a", demonstrations(vision=True, views=True))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five clips of another seed, all to train on, of one task."""
    records = [demonstration(f"s1-{i:06d}-push", frames=3, text=TEXTS["push"], seed=90 + i) for i in range(5)]
    return policy_store(tmp_path_factory.mktemp("stores") / "b", records, seed=1)


def data(
    *stores: Store,
    columns: tuple[str, ...] = COLUMNS,
    horizon: int = 4,
    workers: int = 0,
    samples: int = 100,
    **more: Any,
) -> PolicyData:
    """Of a recipe with these sections."""
    section = TrainSection(batch=4, workers=workers, validate_samples=samples)
    recipe = VlaRecipe(name="test", train=section, **more)
    return PolicyData(PolicyStores(stores), recipe, columns, horizon=horizon)


def taken(made: PolicyData, count: int, **plan: int) -> list[list[int]]:
    batches = made.batches(BatchPlan(batch=4, **plan))
    try:
        return [batch.frames.index.tolist() for _, batch in zip(range(count), batches, strict=False)]
    finally:
        batches.close()  # type: ignore[attr-defined]


def test_an_epoch_takes_every_moment_with_an_action_once(store: Store) -> None:
    made = data(store)
    # six training clips of four frames, the last of which is after the last action
    assert len(made.chosen.train) == 6 * 3 and made.chosen.without == 6
    moments = [frame for batch in taken(made, 9) for frame in batch]
    assert set(moments[:18]) == set(moments[18:]) == set(made.chosen.train.tolist())
    assert moments[:18] != moments[18:]
    assert {made.stores.keys[clip] for clip in made.stores.clip_of(np.array(moments))} == {
        key for i, key in enumerate(made.stores.keys) if i % 4 != 3
    }


def test_the_order_is_a_function_of_seed_and_place(store: Store) -> None:
    whole = taken(data(store), 12)
    assert taken(data(store), 7, start=20) == whole[5:]
    assert taken(data(store, seed=1), 3) != whole[:3]
    ranks = [taken(data(store), 3, rank=rank, world=2) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == whole[:6]


def test_loader_processes_give_the_same_batches(store: Store) -> None:
    assert taken(data(store, workers=2), 6) == taken(data(store), 6)


def test_a_batch_is_what_the_store_says(store: Store) -> None:
    made = data(store, horizon=4)
    batch = next(iter(made.batches(BatchPlan(batch=4))))
    for row, frame in enumerate(batch.frames.index.tolist()):
        clip, place = (int(v[0]) for v in store.clip_of([frame]))
        record = store[clip]
        path = record.extra[ACTION_PATH_NAME]
        steps = np.arange(2 * place, 2 * place + 4)
        assert torch.equal(batch.is_pad[row], torch.from_numpy(steps >= len(path)))
        assert np.array_equal(batch.action[row].numpy(), path[np.minimum(steps, len(path) - 1)])
        assert np.array_equal(batch.need_state()[row].numpy(), record.state[place])
        words = store.language().batch([record.text])  # type: ignore[union-attr]
        length = words.mask.shape[1]
        assert torch.equal(batch.need_language().feat[row, :length], words.feat[0])
        assert batch.need_language().mask[row].sum() == length
        begin, end = record.tokens.offset[place : place + 2]
        start = int(batch.frames.need_tokens().offset[row])
        assert np.array_equal(batch.frames.tokens.feat[start : start + end - begin], record.tokens.feat[begin:end])
    assert batch.action.shape == (4, 4, ACTION) and CHUNK_NAME not in batch.frames.extra
    assert batch.codes is None and batch.frames.rgb is None and batch.frames.cells is None


def test_with_everything_cached_no_picture_is_decoded_or_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(images: object) -> torch.Tensor:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(policy_data, "decode_images", never)
    cached = ("tokens", "language", "state", "vision/dinov2", "vision/vggt")
    batch = next(iter(data(store, columns=cached).batches(BatchPlan(batch=4))))
    assert batch.images == {} and batch.frames.rgb is None and batch.frames.views == {}
    assert {name: feat.shape[1:] for name, feat in batch.frames.vision.items()} == VISION
    with pytest.raises(AssertionError, match="a picture was decoded"):
        next(iter(data(store, columns=("rgb",)).batches(BatchPlan(batch=4))))


def test_pictures_are_decoded_for_the_cameras_that_are_read(store: Store) -> None:
    batch = next(iter(data(store, columns=("rgb", "views/wrist")).batches(BatchPlan(batch=4))))
    assert batch.images["rgb"].shape == (4, 28, 28, 3) and batch.images["wrist"].shape == (4, *WRIST, 3)
    assert batch.frames.rgb is None and batch.frames.views == {} and batch.language is None
    wrist = next(iter(data(store, columns=("views/wrist",)).batches(BatchPlan(batch=4))))
    assert set(wrist.images) == {"wrist"}


def test_balance_draws_tasks_equally_often(store: Store) -> None:
    records = [demonstration(f"s0-{i:06d}-pick", text=TEXTS["pick"], seed=i) for i in range(2)]
    records += [demonstration(f"s0-{i:06d}-reach", frames=9, text=TEXTS["reach"], seed=i) for i in range(2, 8)]
    for by in ("text", "key"):
        made = data(store, data=MomentsSection(balance=by))
        counts = Counter(_task(made, frame) for batch in taken(made, 450) for frame in batch)
        assert len(counts) == 3
        assert max(counts.values()) / min(counts.values()) < 1.25, (by, counts)


def _task(made: PolicyData, frame: int) -> str:
    return made.stores.keys[int(made.stores.clip_of(np.array([frame]))[0])].split("-")[-1]


def test_an_unbalanced_store_is_balanced(tmp_path: Path) -> None:
    records = [demonstration(f"s0-{i:06d}-pick", text=TEXTS["pick"], seed=i) for i in range(2)]
    records += [demonstration(f"s0-{i:06d}-reach", frames=9, text=TEXTS["reach"], seed=i) for i in range(2, 8)]
    made = data(policy_store(tmp_path / "s", records))
    plain = Counter(_task(made, frame) for batch in taken(made, 90) for frame in batch)
    made = data(made.stores.stores[0], data=MomentsSection(balance="key"))
    even = Counter(_task(made, frame) for batch in taken(made, 450) for frame in batch)
    assert plain["reach"] / plain["pick"] > 5
    assert 0.85 < even["reach"] / even["pick"] < 1.18
    whole = taken(made, 20)
    assert taken(made, 10, start=40) == whole[10:]


def test_several_stores_are_one_stream(store: Store, other: Store) -> None:
    made = data(store, other, columns=(*COLUMNS, "rgb"))
    assert len(made.chosen.train) == 18 + 3 * 2  # of the other store, the hash holds two of five clips out
    batch = next(iter(made.batches(BatchPlan(batch=24))))
    assert sorted(batch.frames.index.tolist()) == sorted(made.chosen.train.tolist())
    for row, frame in enumerate(batch.frames.index.tolist()):
        own = store if frame < store.num_frames else other
        local = frame if own is store else frame - store.num_frames
        clip, place = (int(v[0]) for v in own.clip_of([local]))
        assert np.array_equal(batch.need_state()[row].numpy(), own[clip].state[place])
        words = own.language().batch([own.info(clip).text])  # type: ignore[union-attr]
        mask = batch.need_language().mask[row]
        assert torch.equal(batch.need_language().feat[row][mask], words.feat[0])
        assert float(batch.frames.time[row]) == own.info(clip).time[place]
    assert set(made.keys(batch)) == {made.stores.keys[clip] for clip in made.chosen.split.train}
    described = made.describe()
    assert [one["digest"] for one in described["store"]["stores"]] == [store.digest, other.digest]
    assert described["store"]["digest"] not in (store.digest, other.digest)


def test_weights_are_the_shares_of_the_stores(store: Store, other: Store) -> None:
    made = data(store, other, data=MomentsSection(weights=(1.0, 3.0)))
    frames = np.array([frame for batch in taken(made, 450) for frame in batch])
    assert 0.70 < (frames >= store.num_frames).mean() < 0.80
    made = data(store, other, data=MomentsSection(weights=(1.0, 1.0), balance="key"))
    frames = np.array([frame for batch in taken(made, 450) for frame in batch])
    assert 0.45 < (frames >= store.num_frames).mean() < 0.55
    mine = Counter(_task(made, int(frame)) for frame in frames[frames < store.num_frames])
    assert max(mine.values()) / min(mine.values()) < 1.3
    for weights in ((1.0,), (1.0, 0.0)):
        with pytest.raises(RequestError, match="one above 0 for each"):
            data(store, other, data=MomentsSection(weights=weights))


def test_a_share_of_the_clips_is_labelled(store: Store) -> None:
    half = data(store, labels=DemonstrationsSection(fraction=0.5))
    assert half.chosen.labelled is not None and len(half.chosen.labelled) == 3
    assert set(half.stores.clip_of(half.chosen.train)) == set(half.chosen.labelled)
    one = data(store, labels=DemonstrationsSection(max_clips=1))
    assert set(one.chosen.labelled) < set(half.chosen.labelled)  # type: ignore[arg-type]
    assert len(one.chosen.held_out) == len(data(store).chosen.held_out) == 2 * 3
    # statistics of actions see the labelled clips alone, those of states all training clips
    whole = data(store).statistics()
    assert one.statistics()["state"] == whole["state"] and one.statistics()["action"] != whole["action"]
    only = store[int(one.chosen.labelled[0])].extra[ACTION_PATH_NAME]  # type: ignore[index]
    assert np.allclose(one.statistics()["action"]["mean"], only.astype(np.float64).mean(0))
    assert one.describe()["clips"]["labelled"] == [store.info(int(one.chosen.labelled[0])).key]  # type: ignore[index]


def test_validation_is_spread_over_the_held_out_moments(store: Store) -> None:
    made = data(store, samples=4)
    batches = list(made.validation_batches(0, 1))
    assert [len(batch) for batch in batches] == [4]
    assert set(batches[0].frames.index.tolist()) <= set(made.chosen.held_out.tolist())
    both = [list(data(store).validation_batches(rank, 2)) for rank in (0, 1)]
    assert sum(len(batch) for part in both for batch in part) == 6


def test_sizes_are_those_of_the_stores(store: Store) -> None:
    sizes = PolicyStores([store]).sizes
    assert (sizes.state, sizes.action) == (8, 7)
    assert sizes.channels == {"tokens": 16, "language": LANGUAGE, "vision/dinov2": 16, "vision/vggt": 20}


@pytest.mark.parametrize(
    ("columns", "horizon", "sentence"),
    [
        (("vision/siglip",), 4, r"vision/siglip: extract with vision\.towers=siglip=WEIGHTS"),
        (("views/front",), 4, r"views/front: extract with dataset\.views=front"),
        (
            COLUMNS,
            9,
            rf"action_chunk of 9 steps: .* have {CHUNK}; extract with robot\.chunk=9.* model\.horizon={CHUNK}",
        ),
        (("extra/nothing",), 4, "extra/nothing: "),
    ],
)
def test_what_a_store_lacks_is_said_with_its_remedy(
    store: Store, columns: tuple[str, ...], horizon: int, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        data(store, columns=columns, horizon=horizon)


def test_stores_without_robot_or_language(tmp_path: Path) -> None:
    bare = policy_store(tmp_path / "bare", demonstrations(chunk=0, state=0, action=0), language=False, S=0, A=0)
    with pytest.raises(RequestError, match=r"language: extract with text\.weights.*state: .*robot\.chunk=4"):
        data(bare)
    assert PolicyStores([bare]).sizes.state == 0


def test_stores_that_do_not_fit_together(store: Store, tmp_path: Path) -> None:
    six = policy_store(tmp_path / "six", demonstrations(action=6), A=6)
    with pytest.raises(RequestError, match=r"6 dimensions of an action and .* has 7"):
        data(store, six)
    with pytest.raises(RequestError, match="named twice"):
        PolicyStores.open([str(tmp_path / "six"), str(tmp_path / "six")])
    with pytest.raises(RequestError, match="There is nothing at"):
        PolicyStores.open([str(tmp_path / "none")])
    speechless = policy_store(tmp_path / "speechless", demonstrations(), language=False)
    with pytest.raises(RequestError, match=r"lacks what the model needs. language"):
        data(store, speechless)
    assert data(store, speechless, columns=("tokens", "state"))


def test_bad_numbers_are_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # our own writer refuses them; stores can have come from elsewhere
    monkeypatch.setattr(writer, "check_record", lambda record, sizes: None)
    records = demonstrations()
    chunk = records[1].extra[CHUNK_NAME].copy()
    chunk[1, 2] = np.nan
    records[1] = replace(records[1], extra={**records[1].extra, CHUNK_NAME: chunk})
    state = records[4].state.copy()  # type: ignore[union-attr]
    state[2, 0] = np.inf
    records[4] = replace(records[4], state=state)
    made = data(policy_store(tmp_path / "bad", records))
    (note,) = made.chosen.notes
    assert "2 clips are left out" in note
    assert "s0-000001-push: its action is not finite at control step 4" in note
    assert "s0-000004-push: its state is not finite at frame 2" in note
    assert made.describe()["clips"]["left_out"] == ["s0-000001-push", "s0-000004-push"]
    assert len(made.chosen.train) == 4 * 3
    for batch in (made.reader[made.chosen.train], made.reader[made.chosen.held_out]):
        assert batch.action.isfinite().all() and batch.need_state().isfinite().all()
    for index in (0, 2, 3, 5, 6, 7):
        records[index] = replace(records[index], extra={**records[index].extra, CHUNK_NAME: chunk})
    with pytest.raises(RequestError, match=r"No frame of the 0 training clips .* clips are left out"):
        data(policy_store(tmp_path / "all", records), split=SplitSection(validation=0.0))


def test_nothing_but_padding_is_nothing_to_learn(tmp_path: Path) -> None:
    records = [demonstration(f"k{i}", frames=1 + 1, split="train") for i in range(2)]
    for i, record in enumerate(records):
        padded = {**record.extra, "action_chunk_is_pad": np.ones((2, CHUNK), dtype=bool)}
        records[i] = replace(record, extra=padded)
    with pytest.raises(RequestError, match="has an action to learn"):
        data(policy_store(tmp_path / "s", records), split=SplitSection(validation=0.0))


def test_a_store_that_vanished_is_a_sentence(tmp_path: Path) -> None:
    policy_store(tmp_path / "s")
    (tmp_path / "s" / "language.safetensors").unlink()
    with pytest.raises(RequestError, match="instructions of a store cannot be read"):
        PolicyStores.open([str(tmp_path / "s")])
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(RequestError, match="There is nothing"):
        PolicyStores.open([str(tmp_path / "s")])
    assert CHUNK_COLUMN
