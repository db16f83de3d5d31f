"""Features in a byte, and stores without points: what they cost, what they refuse, and that everything knows them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batch_equality import assert_equal
from store_factory import FORMATS, POINTS, small_record, small_records, small_store

from data_specs.quantise import LEVELS, float_features, quantise
from data_specs.records import ClipRecord, Points
from data_specs.shards import Format
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.store import open_store
from pipeline.store.assemble import assemble
from pipeline.store.columns import record_digest
from pipeline.store.places import JoinedPlaces
from pipeline.store.rules import record_problems
from pipeline.store.verify import verify

SIZES = {"P": POINTS, "C": 16, "W": 28}


def halved(record: ClipRecord) -> ClipRecord:
    feat, scale = quantise(record.tokens.feat, record.tokens.offset)
    return replace(record, tokens=replace(record.tokens, feat=feat, scale=scale))


def without_points(record: ClipRecord) -> ClipRecord:
    frames = len(record)
    points = Points(
        pixel=np.zeros((frames, 0), "<u2"),
        rgb=np.zeros((frames, 0, 3), "|u1"),
        depth=np.zeros((frames, 0), "<u2"),
        conf=np.zeros((frames, 0), "|u1"),
    )
    return replace(record, points=points)


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> Format:
    return request.param


def test_a_value_is_off_by_half_a_scale_at_most() -> None:
    generator = np.random.default_rng(0)
    feat = (generator.normal(size=(40, 8)) * 10.0 ** generator.uniform(-6, 3, 8)).astype("<f2")
    feat[:, 3] = 0
    feat[7, 4] = 65504
    offset = np.array([0, 0, 15, 40])  # a frame without tokens
    small, scale = quantise(feat, offset)
    assert small.dtype == np.int8 and scale.dtype == np.float16 and scale.shape == (3, 8)
    found = float_features(*(torch.from_numpy(array) for array in (small, scale, offset))).numpy()
    assert found.dtype == np.float16 and np.isfinite(found).all()
    allowed = 0.5 * np.repeat(scale.astype("f8"), np.diff(offset), 0) * 1.001 + np.abs(feat.astype("f8")) / 1024
    assert (np.abs(found.astype("f8") - feat.astype("f8")) <= allowed).all()
    assert np.abs(small).max() <= LEVELS and (small[:, 3] == 0).all() and not scale[0].any()
    again, same = quantise(found, offset)
    assert np.abs(again.astype(int) - small).max() <= 1 and same.shape == scale.shape


def test_batches_give_float16_of_what_is_stored(tmp_path: Path, form: Format) -> None:
    records = small_records(5)
    exact = open_store(small_store(tmp_path / "exact", form, records).url)
    store = open_store(small_store(tmp_path / "small", form, [halved(record) for record in records]).url)
    assert store.digest != exact.digest and verify(store.layout) == []
    wanted = [7, 0, 3, 3, 10]
    batch, true = store.batch(wanted, ("tokens", "cells")), exact.batch(wanted, ("tokens", "cells"))
    assert batch.tokens.feat.dtype == torch.float16
    assert_equal(batch.cells, true.cells)
    assert_equal(batch.tokens.offset, true.tokens.offset)
    error = (batch.tokens.feat.float() - true.tokens.feat.float()).norm() / true.tokens.feat.float().norm()
    assert 0 < error < 0.02
    clip, frame = (int(index[0]) for index in store.clip_of([7]))
    tokens = store[clip].tokens
    assert tokens.feat.dtype == np.int8 and tokens.features.dtype == np.float16
    rows = slice(int(tokens.offset[frame]), int(tokens.offset[frame + 1]))
    first = batch.tokens.feat[: int(batch.tokens.offset[1])].numpy()
    np.testing.assert_array_equal(first, tokens.features[rows])
    np.testing.assert_array_equal(exact[clip].tokens.features, exact[clip].tokens.feat)


def test_both_formats_have_the_same_digest(tmp_path: Path) -> None:
    records = [without_points(halved(record)) for record in small_records(4)]
    digests = {open_store(small_store(tmp_path / f, f, records, P=0).url).digest for f in FORMATS}
    assert len(digests) == 1


def test_features_of_two_kinds_are_not_mixed_in_silence(tmp_path: Path) -> None:
    records = small_records(3)
    stores = [
        open_store(small_store(tmp_path / "a", records=records).url),
        open_store(small_store(tmp_path / "b", records=[halved(record) for record in records]).url),
    ]
    places = JoinedPlaces([store.places([0]) for store in stores], [np.array([0]), np.array([1])])
    with pytest.raises(ValueError, match="rows of other shapes in 'tokens/feat'"):
        assemble(places, ("tokens",), index=np.arange(2), time=np.zeros(2))


@pytest.mark.parametrize(
    ("change", "array", "words"),
    [
        (lambda t: replace(t, scale=None), "tokens/scale", "only int8 has scales"),
        (lambda t: replace(t, scale=-t.scale), "tokens/scale", "negative"),
        (lambda t: replace(t, scale=t.scale * np.float16(np.inf)), "tokens/scale", "not finite"),
        (lambda t: replace(t, scale=t.scale[:-1]), "tokens/scale", "expected"),
        (lambda t: replace(t, feat=t.feat.astype("<i2")), "tokens/feat", "dtype"),
        (lambda t: replace(t, feat=t.features), "tokens/scale", "only int8 has scales"),
    ],
)
def test_scales_that_do_not_fit_are_named(change, array: str, words: str) -> None:
    record = halved(small_record("k"))
    assert list(record_problems(record, SIZES)) == []
    problems = list(record_problems(replace(record, tokens=change(record.tokens)), SIZES))
    assert any(name == array and words in problem for name, problem in problems), problems


def test_a_store_without_points_is_whole_and_says_so(tmp_path: Path, form: Format) -> None:
    records = small_records(5)
    layout = small_store(tmp_path / "s", form, [without_points(halved(record)) for record in records], P=0)
    store, full = open_store(layout.url), open_store(small_store(tmp_path / "f", form, records).url)
    assert verify(layout) == []
    assert "points" not in store.columns() and "points" in full.columns()
    assert_equal(store.batch([1, 5], ("cells", "camera")), full.batch([1, 5], ("cells", "camera")))
    for columns in (("points",), ("tokens", "points/rgb")):
        with pytest.raises(ValueError, match="keeps no points"):
            store.batch([0], columns)
    with pytest.raises(ValueError, match="keeps no points"):
        store.clouds([0])
    summary = inspect_store(layout.url, verify=True)
    assert summary.verified and not summary.points_kept and summary.tokens_dtype == "int8"
    assert summary.dense_bytes_per_frame == POINTS * 16 * 2  # the recipe's points, not those kept
    text = "\n".join(summary_lines(summary))
    assert "int8 with a scale" in text and "none kept" in text
    other = "\n".join(summary_lines(inspect_store(full.layout.url)))
    assert "int8" not in other and "none kept" not in other


def test_cells_of_a_store_without_points_are_still_checked() -> None:
    record = without_points(small_record("k"))
    sizes = {**SIZES, "P": 0}
    assert list(record_problems(record, sizes)) == []
    count = record.cells.count.copy()
    count[0] += 1
    wrong = replace(record, cells=replace(record.cells, count=count))
    assert ("cells/count", "frame 0: counts disagree with those of the tokens") in list(record_problems(wrong, sizes))
    assert record_digest(wrong) != record_digest(record)


def test_a_page_of_such_a_store_is_written(tmp_path: Path) -> None:
    from pipeline.inspect_html import write_page

    layout = small_store(tmp_path / "s", records=[without_points(halved(r)) for r in small_records(3)], P=0)
    write_page(layout.url, inspect_store(layout.url), tmp_path / "page.html")
    assert "int8" in (tmp_path / "page.html").read_text()
