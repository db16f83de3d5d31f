"""Sizes are those of the files, ratios are against what a dense layout takes, losses are those of the options."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judged_run import moving_store, tiny_run
from store_factory import small_record, small_store
from typer.testing import CliRunner

from data_specs.quantise import quantise
from pipeline.bench.losses import as_int8, feature_error, losses
from pipeline.bench.size import CAMERA_NOISE, bench_size, measure, with_noise
from pipeline.cli import app
from pipeline.config import RequestError
from pipeline.plan.probe import generated_clip
from pipeline.recipes import extract_recipe
from pipeline.store import open_store


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("judged")
    store = moving_store(folder / "store")
    return store, tiny_run(folder / "run", store)


def test_parts_are_the_bytes_of_the_sidecars_and_ratios_follow(judged: tuple[str, Path]) -> None:
    store = open_store(judged[0])
    size = measure("made up", store, None)
    stored = sum(entry.bytes for sidecar in store.layout.sidecars() for entry in sidecar.arrays.values())
    assert sum(size.arrays.values()) == pytest.approx(stored / 72) and size.frames == 72
    assert size.parts["features"] == size.arrays["tokens/feat"] == pytest.approx(size.tokens * 8 * 2)
    assert size.everything < sum(size.arrays.values()) < size.file  # no pictures, no motion, no headers
    assert (size.dense_features, size.dense) == (200 * 8 * 2, 200 * (8 * 2 + 12))
    assert 0 < size.zstd_features < size.dense_features and size.zstd_features < size.zstd < size.dense
    assert size.points_ms > 0 and size.zstd_ms > 0


def test_losses_are_measured_with_the_model(judged: tuple[str, Path]) -> None:
    store = open_store(judged[0])
    small, none, fewer = losses(store, judged[1])
    assert small.option == "tokens.dtype=int8" and small.cosine is not None and small.relative_l2 is not None
    assert 0.999 < small.cosine < 1 and 0.001 < small.relative_l2 < 0.02
    assert small.changed_codes is not None and 0 <= small.changed_codes < 0.5
    assert (none.option, none.changed_codes, none.cosine) == ("store.points=false", 0.0, 1.0)
    assert none.saved == pytest.approx(
        sum(measure("", store, None).parts[p] for p in ("cloud", "colours", "confidence"))
    )
    assert fewer.changed_codes is not None and fewer.changed_codes > 0  # another frame, another code
    assert all(loss.changed_codes is None for loss in losses(store, None))


def test_a_store_of_int8_has_that_loss_already(tmp_path: Path) -> None:
    records = [small_record("a"), small_record("b", seed=4)]
    halved = []
    for record in records:
        feat, scale = quantise(record.tokens.feat, record.tokens.offset)
        halved.append(replace(record, tokens=replace(record.tokens, feat=feat, scale=scale)))
    store = open_store(small_store(tmp_path / "s", records=halved).url)
    assert [loss.option for loss in losses(store, None)] == ["store.points=false", "every second frame"]
    exact = open_store(small_store(tmp_path / "e", records=records).url)
    foreseen = as_int8(exact.batch(range(6), ("tokens",))).need_tokens().feat
    assert foreseen.equal(store.batch(range(6), ("tokens",)).need_tokens().feat)
    cosine, relative = feature_error(exact)
    true = exact.batch(range(6), ("tokens",)).need_tokens().feat.double()
    assert relative == pytest.approx(float((foreseen.double() - true).norm() / true.norm()))
    assert cosine == pytest.approx(
        float(np.mean(np.asarray((true * foreseen).sum(1) / true.norm(dim=1) / foreseen.double().norm(dim=1))))
    )


def test_the_command_prints_and_writes_what_it_measured(judged: tuple[str, Path], tmp_path: Path) -> None:
    store, run = judged
    out = tmp_path / "size.json"
    result = CliRunner().invoke(app, ["bench", "size", "--store", store, "--run", str(run), "--json-file", str(out)])
    assert result.exit_code == 0, result.output
    for words in ("cla bench size", "tokens/feat", "of codes change", "dense by zstd"):
        assert words in result.stdout, words
    figures = json.loads(out.read_text())["sizes"][0]
    assert figures["frames"] == 72 and len(figures["losses"]) == 3
    with pytest.raises(RequestError, match="give --store"):
        bench_size(store=None, run=run, clips=1, frames=2)
    with pytest.raises(RequestError, match="There is nothing"):
        bench_size(store=str(tmp_path / "none"), run=None, clips=1, frames=2)


@pytest.mark.slow
def test_generated_films_are_sized_by_recipe() -> None:
    table = bench_size(store=None, run=None, clips=1, frames=2, cases=["sensor depth, 128 channels"])
    (size,) = table.as_json()["sizes"]
    assert size["dense"] == 8192 * (2 * 128 + 12)
    assert 20 < size["tokens"] < 80


def test_noise_is_that_of_a_camera() -> None:
    clip = generated_clip(extract_recipe("tiny"), 2)
    noisy = with_noise(clip, 0)
    difference = noisy.rgb.astype(int) - clip.rgb
    assert noisy.rgb.dtype == np.uint8 and abs(difference.std() - CAMERA_NOISE) < 0.2
    assert not np.array_equal(with_noise(clip, 1).rgb, noisy.rgb)
