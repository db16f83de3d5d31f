"""Training on a store that is far away: every sample once an epoch, resumed to the same weights, in a bounded cache."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from motion_arrays import with_motion
from policy_store_factory import TEXTS, demonstration, demonstrations, policy_store
from store_factory import small_record, small_store
from train_factory import StopAt

from pipeline.config import RequestError, override
from pipeline.recipes import laq_recipe
from pipeline.store import ShardError, StoreRequestError, open_store
from pipeline.store import shard_cache as cache_module
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store
from pipeline.store.shard_cache import ShardCache
from pipeline.train.checkpoint import RunFolder, load_state
from pipeline.train.laq import LaqTask
from pipeline.train.laq_command import run_laq
from pipeline.train.launch import TrainRequest
from pipeline.train.policy_data import PolicyData
from pipeline.train.policy_recipe import VlaRecipe
from pipeline.train.policy_sections import DemonstrationsSection, MomentsSection
from pipeline.train.policy_stores import PolicyStores
from pipeline.train.progress import Reporter, SilentReporter
from pipeline.train.run import Run
from pipeline.train.shard_reading import with_order
from pipeline.train.task import BatchPlan
from pipeline.train_config import DataSection, TrainSection

TINY = [
    "model.dim=16", "model.heads=2", "model.hidden=16", "model.decoder_layers=1", "model.codes=24",
    "model.code_dim=4", "pairs.offset=0.5", "train.steps=9", "train.batch=4", "train.warmup=8", "train.workers=0",
    "train.log_every=1", "train.validate_every=4", "codebook.init_samples=8", "codebook.replace_every=1",
]  # fmt: skip
FAR = "memory://far/s"
PAIRS = 10 * 3
"""Ten training clips, three first frames half a second before another."""


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A memory of its own, a cache of its own; the names of the files that are fetched whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(cache_module, "_PAUSE_S", 0.001)
    fetched: list[str] = []
    real = MemoryFileSystem.get_file

    def get_file(self: MemoryFileSystem, remote: str, local: str, **options: Any) -> Any:
        fetched.append(remote.rsplit("/", 1)[-1])
        return real(self, remote, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return fetched


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of five frames, a shard each; two are of the store's own validation split."""
    path = tmp_path_factory.mktemp("stores") / "store"
    splits = ["val" if i % 6 == 5 else "train" for i in range(12)]
    records = [with_motion(small_record(f"k{i:02d}", frames=5, split=split), i) for i, split in enumerate(splits)]
    small_store(path, records=records, per_shard=1)
    return path


def put(folder: Path, url: str = FAR) -> StoreLayout:
    """A copy of a store in memory."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            MemoryFileSystem().pipe_file(f"/{url.partition('://')[2]}/{path.relative_to(folder)}", path.read_bytes())
    return StoreLayout.open(url)


def recipe(*assignments: str, url: str = FAR) -> Any:
    made = override(laq_recipe("laq_tiny"), [*TINY, "data.buffer=6", "data.order=shards", *assignments])
    return made.model_copy(update={"data": with_order(made.data, [url])})


def far_task(*assignments: str) -> LaqTask:
    return LaqTask(recipe(*assignments), open_store(FAR))


def pairs_of(task: LaqTask, batches: int, **plan: int) -> list[list[tuple[int, int]]]:
    found: Iterator[Any] = task.batches(BatchPlan(batch=4, **plan))
    try:
        return [
            list(zip(batch.first.index.tolist(), batch.second.index.tolist(), strict=True))
            for _, batch in zip(range(batches), found, strict=False)
        ]
    finally:
        found.close()  # type: ignore[attr-defined]


def bytes_of(layout: StoreLayout) -> int:
    return max(sidecar.file.bytes for sidecar in layout.sidecars() if sidecar.file)


@pytest.mark.parametrize("world", [1, 3])
def test_every_pair_comes_once_an_epoch_over_all_processes(here: Path, world: int) -> None:
    put(here)
    steps = 2 * PAIRS // 4 // world
    ranks = [pairs_of(far_task("pairs.jitter=0.2"), steps, rank=rank, world=world) for rank in range(world)]
    one = [pair for step in zip(*ranks, strict=True) for batch in step for pair in batch]
    task = far_task()
    for epoch in range(2):
        first = [frame for frame, _ in one[epoch * PAIRS : (epoch + 1) * PAIRS]]
        assert sorted(first) == sorted(task.pairs.first.tolist())
    assert one[:PAIRS] != one[PAIRS : 2 * PAIRS]
    assert one == [pair for batch in pairs_of(far_task("pairs.jitter=0.2"), steps * world) for pair in batch]


def test_the_order_goes_on_in_the_middle_and_is_that_of_a_copy_at_hand(here: Path) -> None:
    put(here)
    whole = pairs_of(far_task(), 15)
    assert pairs_of(far_task(), 10, start=20) == whole[5:]
    assert pairs_of(LaqTask(recipe(), open_store(str(here))), 15) == whole
    assert pairs_of(far_task("data.buffer=1"), 15) != whole
    store = open_store(FAR)
    shards = [int(shard) for batch in pairs_of(far_task("data.buffer=1"), 7) for shard in store.shard_of(
        np.array([first for first, _ in batch])
    )]  # fmt: skip
    assert sum(a != b for a, b in itertools.pairwise(shards)) == len(set(shards)) - 1, "one after the other"


def test_shards_come_once_an_epoch_and_the_cache_keeps_its_bound(here: Path, memory: list[str], tmp_path: Path) -> None:
    layout = put(here)
    room = 5 * bytes_of(layout)
    given = (f"data.cache={tmp_path / 'cache'}", f"data.cache_gb={room / 1e9}")
    task, plain = far_task(*given), LaqTask(recipe(), open_store(str(here)))
    list(task.validation_batches(0, 1))
    assert not memory, "held-out pairs are asked for by their own bytes"
    watched = ShardCache(tmp_path / "cache", room)
    for batch, expected in zip(range(30), plain.batches(BatchPlan(batch=4)), strict=False):
        if batch == 0:
            found = task.batches(BatchPlan(batch=4))
        got = next(found)
        assert torch.equal(got.first.tokens.feat, expected.first.tokens.feat)
        assert torch.equal(got.second.tokens.feat, expected.second.tokens.feat)
        assert watched.used() <= room
    found.close()  # type: ignore[attr-defined]
    trained = {layout.data_name(f"{i:06d}").rpartition("/")[2] for i in range(12) if i % 6 != 5}
    assert set(memory) == trained, "shards with nothing to train on stay away"
    assert len(memory) <= 5 * 10, "30 batches of 4 are four epochs of ten shards; the fifth may be on its way"


def weights(run: Path) -> dict[str, Any]:
    state = load_state(RunFolder(run).folder("last"))
    return {"step": state["step"], **Run.open(run).load_model(which="last").state_dict()}


def laq(out: Path, mode: Any, report: Reporter | None = None, store: str = FAR) -> None:
    made = override(laq_recipe("laq_tiny"), [*TINY, "data.buffer=6"])
    run_laq(made, store, TrainRequest(out=out, mode=mode, device="cpu"), report or SilentReporter())


def test_a_run_on_a_url_is_resumed_in_the_middle_of_an_epoch_to_the_same_weights(here: Path, tmp_path: Path) -> None:
    put(here)
    laq(tmp_path / "whole", "new")
    with pytest.raises(KeyboardInterrupt):
        laq(tmp_path / "parts", "new", StopAt(5))
    shutil.rmtree(tmp_path / "home")  # another machine
    laq(tmp_path / "parts", "resume")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert first["step"] == second["step"] == 9
    assert all(torch.equal(first[name], second[name]) for name in first if name != "step")
    data = Run.open(tmp_path / "whole").config["data"]
    assert (data["order"], data["buffer"]) == ("shards", 6)


def test_a_run_of_another_order_is_not_gone_on_with_unasked(here: Path, tmp_path: Path) -> None:
    made = override(laq_recipe("laq_tiny"), [*TINY, "train.steps=2"])
    run_laq(made, str(here), TrainRequest(out=tmp_path / "run", device="cpu"), SilentReporter())
    config = Run.open(tmp_path / "run").config["data"]
    assert config["order"] is None and config["buffer"] is None, "as before there were such keys"
    put(here)
    with pytest.raises(RequestError, match=r"these keys differ: data\.order, data\.buffer"):
        request = TrainRequest(out=tmp_path / "run", mode="resume", device="cpu")
        run_laq(made, FAR, request, SilentReporter())
    same = override(made, ["data.order=shuffled", "train.steps=3"])
    assert run_laq(same, FAR, request, SilentReporter()).steps == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["pairs.motion=0.5"], r"pairs\.motion=0\.5 reads .*cla merge memory://far/s --out FOLDER"),
        (["data.cache=/proc/nowhere"], r"cache folder /proc/nowhere cannot be made"),
    ],
)
def test_what_cannot_be_read_so_is_refused(here: Path, change: list[str], sentence: str) -> None:
    put(here)
    with pytest.raises(RequestError, match=sentence):
        far_task(*change)


def test_a_cache_that_is_too_small_for_the_buffer_is_refused(here: Path) -> None:
    layout = put(here)
    task = far_task(f"data.cache_gb={2.2 * bytes_of(layout) / 1e9}", "data.buffer=1000")
    with pytest.raises(StoreRequestError, match=r"more room \(data\.cache_gb\), or take a smaller buffer"):
        next(task.batches(BatchPlan(batch=4)))
    with pytest.raises(RequestError, match=r"data\.buffer is for data\.order=shards"):
        with_order(DataSection(buffer=5), ["/data/store"])


def test_labels_and_what_is_validated_are_those_of_a_store_at_hand(here: Path) -> None:
    put(here)
    far, near = far_task(), LaqTask(recipe(), open_store(str(here)))
    for _ in range(2):
        mine, theirs = (list(task.validation_batches(0, 1)) for task in (far, near))
        assert len(mine) == len(theirs) > 0
        assert all(
            torch.equal(a.second.tokens.feat, b.second.tokens.feat) for a, b in zip(mine, theirs, strict=True)
        )  # fmt: skip


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """Eight clips of three tasks, and five of one task."""
    one = policy_store(tmp_path_factory.mktemp("stores") / "a", demonstrations())
    records = [demonstration(f"s1-{i:06d}-push", frames=3, text=TEXTS["push"], seed=90 + i) for i in range(5)]
    return one, policy_store(tmp_path_factory.mktemp("stores") / "b", records, seed=1)


def moments(stores: list[Store], count: int, **sections: Any) -> tuple[PolicyData, list[int]]:
    data = sections.pop("data", MomentsSection())
    data = with_order(data.model_copy(update={"order": "shards", "buffer": 6}), [])
    made = VlaRecipe(name="t", train=TrainSection(batch=4, workers=0, validate_samples=9), data=data, **sections)
    opened = PolicyData(PolicyStores(stores), made, ("tokens", "language", "state"), horizon=4)
    batches = opened.batches(BatchPlan(batch=4))
    taken = [frame for _, batch in zip(range(count), batches, strict=False) for frame in batch.frames.index.tolist()]
    batches.close()  # type: ignore[attr-defined]
    return opened, taken


def test_moments_of_stores_far_and_near_come_once_an_epoch(robots: tuple[Store, Store]) -> None:
    put(Path(robots[0].layout.url))
    stores = [open_store(FAR), robots[1]]
    data, taken = moments(stores, 14)
    size = len(data.chosen.train)
    assert size > 6 * 3, "the second store's, too"
    assert sorted(taken[:size]) == sorted(taken[size : 2 * size]) == data.chosen.train.tolist()
    assert taken == moments(list(robots), 14)[1], "as those of the stores at hand"
    few, taken = moments(stores, 9, labels=DemonstrationsSection(fraction=0.3))
    assert sorted(taken[: len(few.chosen.train)]) == few.chosen.train.tolist() and len(few.chosen.train) < size


def test_tasks_are_balanced_and_stores_weighted_as_at_hand(robots: tuple[Store, Store]) -> None:
    put(Path(robots[0].layout.url))
    section = MomentsSection(balance="text", weights=(1.0, 3.0))
    data, taken = moments([open_store(FAR), robots[1]], 1400, data=section)
    frames = Counter(data.stores.store_of(data.stores.clip_of(np.array(taken))).tolist())
    assert 2.5 < frames[1] / frames[0] < 3.6
    texts = Counter(data.stores.texts[clip] for clip in data.stores.clip_of(np.array(taken)).tolist() if clip < 8)
    assert set(texts) == set(TEXTS.values()) and max(texts.values()) < 1.35 * min(texts.values())


def test_a_shard_that_is_gone_is_a_sentence(here: Path) -> None:
    layout = put(here)
    task = far_task()
    MemoryFileSystem().rm(layout.files.path(layout.data_name("000004")))
    with pytest.raises(ShardError, match=r"000004.* is missing"):
        pairs_of(task, 30)


def test_recipes_of_before_are_read_as_they_were() -> None:
    made = laq_recipe("laq_tiny")
    old = made.model_dump(mode="json")
    for name in ("order", "buffer", "cache", "cache_gb"):
        assert old["data"].pop(name) is None
    assert type(made).model_validate(old) == made
