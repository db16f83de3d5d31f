"""Processes that read ahead: what becomes of a run when one dies or hangs."""

import time

import pytest
from train_factory import BadReader

from pipeline.config import FailedError
from pipeline.train import data
from pipeline.train.data import load_ahead
from pipeline.train_config import TrainSection

SECTION = TrainSection(workers=1, prefetch=1)


def test_a_loader_process_that_dies_is_a_sentence() -> None:
    batches = load_ahead(BadReader("dies"), [0, 1, 2, 3], SECTION)
    with pytest.raises(FailedError, match=r"A loader process died .*go on with --resume"):
        assert list(batches) == [0, 1]


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LOADER_TIMEOUT", 5)
    begun = time.monotonic()
    batches = load_ahead(BadReader("hangs"), [2], SECTION)
    with pytest.raises(FailedError, match=r"gave no batch for 5 s.*train\.workers=0"):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 100  # the process was ended, not waited for
