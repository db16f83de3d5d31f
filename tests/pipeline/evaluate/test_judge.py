import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from headless_browser import open_page
from judged_run import CLIPS, CODES, moving_store, tiny_run
from PIL import Image
from typer.testing import CliRunner

from data_specs.batches import TokenBatch
from pipeline.cli import app
from pipeline.config import RequestError
from pipeline.evaluate.curves import curves_svg
from pipeline.evaluate.encoding import Encoder
from pipeline.evaluate.evidence import gather, pooled, reconstruct
from pipeline.evaluate.figure import choose_shared
from pipeline.evaluate.judge import SOURCES, Judged, judge, pairs_to_judge
from pipeline.evaluate.report import picture, write_report
from pipeline.evaluate.text import judgement_lines
from pipeline.train.checkpoint import SPLIT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return moving_store(tmp_path_factory.mktemp("judge") / "store")


@pytest.fixture(scope="module")
def run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("judge") / "run", store)


@pytest.fixture(scope="module")
def encoder(run: Path, store: str) -> Encoder:
    return Encoder.open(run, store, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def judged(encoder: Encoder) -> Judged:
    return judge(encoder)


def test_probes_are_judged_on_clips_that_the_run_never_saw(encoder: Encoder, run: Path) -> None:
    pairs = encoder.pairs()
    fit, held_out = pairs_to_judge(encoder, pairs)
    keys = encoder.store.clips["key"].to_pylist()
    recorded = json.loads((run / SPLIT).read_text())
    assert {keys[i] for i in pairs.clip[fit]} == set(recorded["train"])
    assert {keys[i] for i in pairs.clip[held_out]} == set(recorded["validation"])
    fewer = pairs_to_judge(encoder, pairs, 6)
    assert [len(rows) for rows in fewer] == [6, 6]
    assert len(np.unique(pairs.clip[fewer[0]])) == 6  # spread, not the first six


def test_the_evidence_is_what_the_store_says(encoder: Encoder) -> None:
    pairs = encoder.pairs()
    rows = np.array([5, 0, 30])
    evidence = gather(encoder, pairs, rows)
    for i, row in enumerate(rows):
        clip = encoder.store[int(pairs.clip[row])]
        first, second = (int(encoder.store.clip_of(f[[row]])[1][0]) for f in (pairs.first, pairs.second))
        sums = clip.extra["action_sum"].astype(np.float64)
        np.testing.assert_allclose(evidence.action[i], sums[second] - sums[first])
        means = [np.average(clip.tokens.feat[s], axis=0, weights=clip.tokens.count[s]) for s in (
            slice(*clip.tokens.offset[f : f + 2]) for f in (first, second)
        )]  # fmt: skip
        np.testing.assert_allclose(evidence.baseline[i], means[1] - means[0], atol=2e-3)


def test_pooling_weighs_rows_by_their_points() -> None:
    tokens = TokenBatch(
        feat=torch.tensor([[1.0], [5.0], [7.0]]),
        coord=torch.zeros(3, 3),
        count=torch.tensor([3, 1, 2]),
        offset=torch.tensor([0, 2, 3]),
    )
    assert pooled(tokens).tolist() == [[2.0], [7.0]]


def test_the_decoders_error_clip_by_clip_adds_up_to_the_models_own(encoder: Encoder) -> None:
    pairs = encoder.pairs()
    _, held_out = pairs_to_judge(encoder, pairs)
    errors = reconstruct(encoder, pairs, held_out)
    assert set(errors.copy) == set(errors.decoder) == set(encoder.model.targets.weights)
    assert errors.clip.tolist() == sorted(set(pairs.clip[held_out].tolist()))
    assert errors.weight.sum() == len(held_out)
    (batch,) = encoder.batches(pairs, held_out)
    with torch.inference_mode():
        _, metrics = encoder.model(batch)
    for kind, found in (("copy", errors.copy), ("loss", errors.decoder)):
        mean = (found["features"] * errors.weight).sum() / errors.weight.sum()
        assert mean == pytest.approx(float(metrics[f"{kind}/features"]), rel=1e-5)


def test_the_judgement_has_the_promised_keys_and_repeats_itself(encoder: Encoder, judged: Judged) -> None:
    values = judged.judgement.as_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values["nmse"]) == list(values["nmse_mlp"]) == list(SOURCES)
    assert {"ci95", "codes_used", "perplexity", "decoder_vs_copy", "mutual_information", "target"} <= set(values)
    assert values["dimensions"] == ["0", "2"]
    assert values["dimensions_left_out"] == ["1"]
    for source in SOURCES:
        low, high = values["ci95"]["nmse"][source]
        assert low <= values["nmse"][source] <= high
        # made-up actions follow from nothing: no probe may find anything
        assert 0.7 < values["nmse"][source] < 1.6
        by_dimension = values["nmse_by_dimension"]["linear"][source]
        assert values["nmse"][source] == pytest.approx(np.mean(list(by_dimension.values())))
    assert values["clips"]["fit"] + values["clips"]["held_out"] == CLIPS
    assert 1 <= values["perplexity"] <= values["codes_used"] <= values["codes"] == CODES
    assert values["store"]["digest"] == encoder.store.digest
    assert values["run"]["step"] == 2
    assert judge(encoder).judgement.as_json() == values
    lines = list(judgement_lines(judged.judgement))
    assert any(line.startswith("latent ") and f"{values['nmse']['latent']:.3f}" in line for line in lines)


def test_shared_codes_are_the_most_used_and_shown_from_different_clips() -> None:
    codes = np.array([[3, 1]] * 6 + [[2, 1]] * 2)
    clip = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    action = np.stack([np.arange(8.0), np.ones(8) * np.array([1, -1] * 4)], axis=1)
    shared = choose_shared(codes, clip, action, 4, count=2)
    assert [(item.place, item.code, item.count) for item in shared] == [(1, 1, 8), (0, 3, 6)]
    assert clip[shared[1].rows].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(shared[0].action, 0, atol=1e-12)
    np.testing.assert_allclose(shared[1].action, [(2.5 - 3.5) / np.arange(8).std(), 0])


def test_curves_are_drawn_from_what_was_logged() -> None:
    svg = curves_svg({"a<b": [(0.0, 1.0), (10.0, 3.0)], "empty": []}, name="loss")
    assert "a&lt;b" in svg
    assert "empty" not in svg
    assert 'points="40.0,148.0 380.0,10.0"' in svg
    assert curves_svg({"a": []}, name="loss") == "<p>nothing recorded</p>"
    assert curves_svg({"a": [(float(i), 1.0) for i in range(1000)]}, name="loss").count(",") < 300


@pytest.fixture(scope="module")
def report(encoder: Encoder, judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The page and the picture, of a run with a name that must be escaped."""
    folder = tmp_path_factory.mktemp("report")
    run = {**judged.judgement.run, "name": "<b>run</b>"}
    named = replace(judged, judgement=replace(judged.judgement, run=run))
    write_report(encoder, named, html=folder / "run.html", png=folder / "run.png")
    return folder / "run.html", folder / "run.png"


def test_the_picture_shows_frames_and_is_the_same_every_time(
    encoder: Encoder, judged: Judged, report: tuple[Path, Path]
) -> None:
    drawn = report[1].read_bytes()
    assert drawn == picture(encoder, judged)
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 1000


def test_the_page_shows_the_figures_and_escapes_names(judged: Judged, report: tuple[Path, Path]) -> None:
    page = report[0].read_text()
    assert "<b>run</b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "{{" not in page
    assert f"{judged.judgement.linear('latent').nmse:.3f}" in page
    assert page.count('class="curve') >= 2
    assert base64.b64encode(report[1].read_bytes()).decode() in page


@pytest.mark.browser
def test_a_browser_shows_the_page(report: tuple[Path, Path], tmp_path: Path) -> None:
    text = open_page(report[0], tmp_path).text
    assert "<b>run</b>" in text["h1"]
    assert "Codes against motion" in text["h2"]


def test_a_store_without_actions_says_what_to_do(run: Path, tmp_path: Path) -> None:
    mute = moving_store(tmp_path / "mute", action=False)
    with pytest.raises(RequestError, match=r"no column extra/action_sum.*--dataset tabletop"):
        judge(Encoder.open(run, mute, device=torch.device("cpu")))


def test_a_store_without_held_out_clips_says_what_to_do(run: Path, tmp_path: Path) -> None:
    one = moving_store(tmp_path / "one", clips=1)
    with pytest.raises(RequestError, match=r"no clips with pairs (held out|to fit)|no clips to train on"):
        judge(Encoder.open(run, one, device=torch.device("cpu")))


def test_the_command_prints_one_json_object_or_a_table(run: Path, store: str, tmp_path: Path) -> None:
    arguments = ["eval", "probe", "--run", str(run), "--store", store, "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["nmse"]) == set(SOURCES)
    wrong = CliRunner().invoke(app, [*arguments, "--html", str(tmp_path / "no" / "page.html")])
    assert wrong.exit_code == 2
    assert "There is no folder" in wrong.stderr
