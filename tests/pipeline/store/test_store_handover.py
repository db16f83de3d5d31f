"""Batches of loader processes: in shared memory that is used again, never while anybody has a part of it."""

import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from store_factory import small_records, small_store
from torch.utils.data import DataLoader, Dataset

from pipeline.store import handover, open_store
from pipeline.store.handover import Segments, Sent, forget_ended, hand_over

pytestmark = pytest.mark.skipif(not handover.HAS_SEGMENTS, reason="this system has no anonymous files")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No memory from other tests, none left to them."""
    pool = Segments()
    monkeypatch.setattr(handover, "_OURS", [pool])
    monkeypatch.setattr(handover, "_RECEIVED", {})
    return pool


def through(batch):
    """As a DataLoader's queue does it, in one process."""
    return pickle.loads(bytes(ForkingPickler.dumps(Sent(batch))))


def test_every_kind_of_tensor_arrives_as_it_was():
    torch.manual_seed(0)
    whole = torch.arange(24).reshape(4, 6)
    sent = {
        "float": torch.randn(3, 5),
        "uint16": torch.arange(7).to(torch.uint16),
        "bfloat16": torch.randn(9).to(torch.bfloat16),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "number": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 512, dtype=torch.float16),
        "columns": whole[:, 1:3],
        "rows": whole[1:3],
        "sparse": torch.eye(3).to_sparse(),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "others": [np.arange(3), "text", None, 2],
    }
    came = through(sent)
    for name, tensor in sent.items():
        if isinstance(tensor, torch.Tensor):
            assert came[name].dtype == tensor.dtype and came[name].shape == tensor.shape, name
            assert torch.equal(came[name].to_dense(), tensor.to_dense()), name
    assert came["others"][0].tolist() == [0, 1, 2] and came["others"][1:] == ["text", None, 2]
    came["rows"][0, 0] = -1  # a batch may be changed where it is
    assert whole[1, 0] == 6


@pytest.mark.parametrize("seed", range(8))
def test_memory_is_used_again_and_never_while_somebody_has_it(seed, alone):
    random = np.random.default_rng(seed)
    held = []
    for number in range(60):
        size = int(random.integers(1, 300_000))
        array = alone.take(size * 4).view(np.int32)
        array[:] = number
        batch = {"a": torch.from_numpy(array), "b": torch.full((int(random.integers(5)),), number)}
        if random.random() < 0.2:
            held.append((number, batch))  # a worker that keeps what it made
            if random.random() < 0.5:
                continue  # and does not send it
        came = through(batch)
        del batch, array
        if random.random() < 0.5:
            held.append((number, {"a": came["a"][size // 2 :]}))  # a part keeps the whole
        del came
        while held and random.random() < 0.6:
            held.pop(int(random.integers(len(held))))
        for value, parts in held:
            assert all((tensor == value).all() for tensor in parts.values())
    held.clear()
    for number in range(40):
        through({"a": torch.full((1000,), number)})
    assert len(alone._all) <= handover.IDLE + 3 and len(handover._RECEIVED) <= handover.IDLE + 4


def test_a_batch_larger_than_the_last_takes_more_segments(alone):
    through({"a": torch.zeros(10)})
    arrays = [alone.take(3 << 20) for _ in range(3)]
    for number, array in enumerate(arrays):
        array[:] = number
    came = through([torch.from_numpy(array) for array in arrays])
    assert [int(tensor[0]) for tensor in came] == [int(tensor[-1]) for tensor in came] == [0, 1, 2]


def test_what_was_dropped_unsent_leaves_its_memory(alone):
    for _ in range(100):
        alone.take(500_000)
    assert len(alone._all) == 1


def test_a_fork_does_not_free_what_its_parent_holds(alone):
    came = through({"a": torch.ones(1000)})
    segment = alone._all[0]

    def child() -> None:
        came.clear()  # no gc.collect(): what else a fork of this process holds may wait for threads that it has not
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0 and segment.base[0] == handover._SENT
    came.clear()
    assert segment.base[0] == handover._FREE


def test_memory_of_ended_workers_is_let_go(alone, monkeypatch):
    came = through({"a": torch.ones(1000)})
    forget_ended()
    assert len(handover._RECEIVED) == 1
    monkeypatch.setattr(handover, "_runs", lambda process: False)
    forget_ended()
    assert not handover._RECEIVED and (came["a"] == 1).all()


class Keeping(Dataset):
    """Frames of a store; keeps the first batch that it makes and gives it again for index 0."""

    def __init__(self, store):
        self._store, self._kept = store, None

    def __len__(self):
        return 30

    def __getitem__(self, index):
        if self._kept is None:
            self._kept = self._store.batch([3, 1, 4])
        return self._kept if index % 3 == 0 else self._store.batch([index % 13, 12, 0])


def test_workers_give_what_the_process_itself_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.memory.SMALL", 256)  # or all arrays of small clips would be copied
    small_store(tmp_path, records=small_records(6))
    data = Keeping(open_store(str(tmp_path)))
    fork = multiprocessing.get_context("fork")
    loader = DataLoader(
        data, batch_size=None, collate_fn=hand_over, num_workers=2, multiprocessing_context=fork, timeout=60
    )
    batches = list(loader)  # all of them at once, and each must stay what it is
    assert len(batches) == 30
    for index, batch in enumerate(batches):
        expected = data[index]
        assert torch.equal(batch.index, expected.index)
        for family in ("tokens", "cells"):
            for name, tensor in vars(getattr(batch, family)).items():
                assert torch.equal(tensor, getattr(getattr(expected, family), name)), (index, name)
    keys = {name for name, _ in handover._RECEIVED}
    assert len(keys) == 2
    forget_ended()
    assert not handover._RECEIVED
    del batches, batch
    # dropped one by one, a worker needs no more memory than what is on its way
    for batch in loader:
        del batch
        assert len(handover._RECEIVED) <= 2 * (2 + 1 + handover.IDLE)
