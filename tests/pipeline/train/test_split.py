import numpy as np
import pytest

from pipeline.config import RequestError
from pipeline.train.split import split_clips
from pipeline.train_config import SplitSection

KEYS = [f"clip-{i:03d}" for i in range(400)]


def test_a_store_keeps_its_own_splits() -> None:
    splits = ["train", "validation", "test", "train"]
    split = split_clips(KEYS[:4], splits, SplitSection())
    assert split.train.tolist() == [0, 3] and split.validation.tolist() == [1]
    assert split.rule == "the store's splits"


def test_else_the_key_decides_whatever_else_is_in_the_store() -> None:
    split = split_clips(KEYS, ["train"] * 400, SplitSection(validation=0.2))
    assert 50 < len(split.validation) < 110
    assert sorted([*split.train, *split.validation]) == list(range(400))
    some = KEYS[100:300][::-1]
    again = split_clips(some, ["train"] * 200, SplitSection(validation=0.2))
    held_out = {KEYS[i] for i in split.validation} & set(some)
    assert {some[i] for i in again.validation} == held_out
    assert (
        split.record(KEYS)["validation_digest"]
        == split_clips(KEYS[::-1], ["train"] * 400, SplitSection(validation=0.2)).record(KEYS[::-1])[
            "validation_digest"
        ]
    )


def test_one_clip_is_held_out_where_there_are_two() -> None:
    assert len(split_clips(KEYS[:2], ["", ""], SplitSection(validation=0.001)).validation) == 1
    assert len(split_clips(KEYS[:1], [""], SplitSection(validation=0.001)).validation) == 0
    assert len(split_clips(KEYS, ["all"] * 400, SplitSection(validation=0)).validation) == 0


def test_only_validation_clips_are_told_apart_by_key() -> None:
    split = split_clips(KEYS, ["val"] * 400, SplitSection())
    assert len(split.train) > 300 and len(np.intersect1d(split.train, split.validation)) == 0


def test_test_clips_are_never_used() -> None:
    split = split_clips(KEYS, ["test", "train"] * 200, SplitSection())
    assert not {*split.train, *split.validation} & set(range(0, 400, 2))
    with pytest.raises(RequestError, match="no clips to train on"):
        split_clips(KEYS, ["test"] * 400, SplitSection())
