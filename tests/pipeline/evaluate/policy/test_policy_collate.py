from pathlib import Path

import pytest
from batch_equality import assert_equal
from policy_store_factory import demonstrations, policy_store

from data_specs.batches import FrameBatch, LanguageBatch
from pipeline.evaluate.policy.collate import join


def test_moments_put_together_are_what_a_store_gives(tmp_path: Path) -> None:
    store = policy_store(tmp_path / "store", demonstrations(3, vision=True, views=True))
    columns = ("tokens", "cells", "points", "camera", "rgb", "state", "vision/dinov2", "views/wrist")
    frames = [7, 0, 3, 11]
    together = store.batch(frames, columns)
    apart = [store.batch([frame], columns) for frame in frames]
    assert_equal(join(apart), together)
    assert_equal(join([join(apart[:3]), apart[3]]), together)
    table = store.language()
    assert table is not None
    texts = [table.texts[0], table.texts[2], table.texts[1]]
    assert_equal(join([table.batch([text]) for text in texts]), table.batch(texts))


def test_moments_of_other_columns_are_refused() -> None:
    one = FrameBatch.example(frames=1, points=64, channels=8, state=3)
    with pytest.raises(ValueError, match="some moments have 'state'"):
        join([one, FrameBatch.example(frames=1, points=64, channels=8)])
    with pytest.raises(ValueError, match="no moments"):
        join([])
    assert len(join([LanguageBatch.example(2, length=5), LanguageBatch.example(1, length=9)]).mask) == 3
