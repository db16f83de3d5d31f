import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from judged_run import CLIPS, CODES, FRAMES, MODEL, moving_store, tiny_run
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import FailedError, RequestError
from pipeline.evaluate.encoding import Encoder, Latents
from pipeline.label import label
from pipeline.label_file import read_facts
from pipeline.store.pairs import PairIndex

PAIRS = CLIPS * (FRAMES - 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return moving_store(tmp_path_factory.mktemp("label") / "store")


@pytest.fixture(scope="module")
def run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("label") / "run", store)


@pytest.fixture(scope="module")
def encoder(run: Path, store: str) -> Encoder:
    return Encoder.open(run, store, device=torch.device("cpu"))


class Dying:
    """An encoder that stops after some calls, as a killed process does."""

    def __init__(self, encoder: Encoder, calls: int) -> None:
        self._encoder, self._calls = encoder, calls

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def encode(self, pairs: PairIndex, rows: np.ndarray) -> Latents:  # type: ignore[type-arg]
        if self._calls == 0:
            raise KeyboardInterrupt
        self._calls -= 1
        return self._encoder.encode(pairs, rows)


def test_every_pair_has_a_row_with_what_the_model_says_of_it(encoder: Encoder, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.parquet"
    summary = label(encoder, out, embeddings=True, part=10)
    assert (summary.pairs, summary.clips, summary.without, summary.kept) == (PAIRS, CLIPS, 0, 0)
    file = pq.ParquetFile(out)
    assert file.num_row_groups == summary.parts == CLIPS // 3  # whole clips of 4 pairs, at least 10 a part
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == PAIRS
    pairs = encoder.pairs()
    latents = encoder.encode(pairs, np.arange(PAIRS))
    for i, row in enumerate(rows):
        assert (row["clip"], row["split"]) == (f"clip-{i // 4:02d}", "train")
        assert (row["frame"], row["frame_to"]) == (i % 4, i % 4 + 2)
        assert (row["time"], row["offset"]) == (i % 4 * 0.25, 0.5)
        assert [row["code_0"], row["code_1"]] == latents.codes[i].tolist()
        assert 0 <= row["code_0"] < CODES
        np.testing.assert_allclose(row["quantised"], latents.quantised[i].reshape(-1), rtol=1e-5)
        gap = np.array(row["continuous"]).reshape(2, 4) - np.array(row["quantised"]).reshape(2, 4)
        np.testing.assert_allclose([row["distance_0"], row["distance_1"]], np.linalg.norm(gap, axis=1), rtol=1e-4)
    facts = read_facts(out)
    assert facts["run"]["name"] == run.name
    assert facts["run"]["recipe"] == "test"
    assert facts["store"]["digest"] == encoder.store.digest
    assert facts["offset_seconds"] == 0.5


def test_two_labellings_are_equal_interrupted_or_not(encoder: Encoder, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.parquet", tmp_path / "twice.parquet"
    label(encoder, once, part=10)
    with pytest.raises(KeyboardInterrupt):
        label(Dying(encoder, 2), twice, part=10)  # type: ignore[arg-type]
    assert not twice.exists()
    with pytest.raises(RequestError, match="go on with it by --resume"):
        label(encoder, twice, part=10)
    summary = label(encoder, twice, part=10, mode="resume")
    assert summary.kept == 2
    assert twice.read_bytes() == once.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["once.parquet", "twice.parquet"]


def test_parts_of_another_labelling_are_not_gone_on_with(encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "codes.parquet"
    with pytest.raises(KeyboardInterrupt):
        label(Dying(encoder, 1), out, part=10)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="parts of another labelling"):
        label(encoder, out, part=10, embeddings=True, mode="resume")
    label(encoder, out, part=10, embeddings=True, mode="overwrite")
    assert "quantised" in pq.read_schema(out).names
    with pytest.raises(RequestError, match="there already"):
        label(encoder, out, part=10)


def test_a_full_disk_is_a_sentence_and_keeps_finished_parts(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "codes.parquet"
    with pytest.raises(KeyboardInterrupt):
        label(Dying(encoder, 1), out, part=10)  # type: ignore[arg-type]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(FailedError, match="free some space, then go on with --resume"):
        label(encoder, out, part=10, mode="resume")
    assert [p.name for p in (tmp_path / "codes.parquet.parts").iterdir()] == ["000000.parquet"]


def test_a_store_of_other_features_is_refused(run: Path, store: str, tmp_path: Path) -> None:
    other = moving_store(tmp_path / "other", clips=2, models=(replace_hash("cd"),))
    with pytest.raises(RequestError, match=r"made by another concerto .SHA-256 cdcdcdcdcdcd"):
        Encoder.open(run, other, device=torch.device("cpu"))
    none = moving_store(tmp_path / "none", clips=2, models=())
    with pytest.raises(RequestError, match=r"another concerto .none."):
        Encoder.open(run, none, device=torch.device("cpu"))
    wide = tmp_path / "wide"
    shutil.copytree(store, wide)
    manifest = json.loads((wide / "manifest.json").read_text())
    manifest["sizes"]["C"] = 16
    (wide / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match=r"16 channels, the run at .* was trained on 8"):
        Encoder.open(run, str(wide), device=torch.device("cpu"))


def replace_hash(byte: str) -> object:
    return MODEL.model_copy(update={"sha256": byte * 32})


def test_a_store_without_pairs_at_the_offset_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    late = replace(encoder, run=replace(encoder.run, record=encoder.run.record.model_copy(
        update={"config": {**encoder.run.config, "pairs": {"offset": 9.0}}}
    )))  # fmt: skip
    with pytest.raises(RequestError, match="trained on frames 9 s apart: no two frames"):
        label(late, tmp_path / "codes.parquet")


def test_the_command_writes_the_file_and_answers_mistakes(run: Path, store: str, tmp_path: Path) -> None:
    out = tmp_path / "codes.parquet"
    arguments = ["label", "--run", str(run), "--store", store, "--out", str(out), "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["pairs"] == PAIRS
    for more, sentence in (
        ([], "replace it by --overwrite"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--split", "vali"], "no clips of split 'vali'"),
        (["--run", str(tmp_path)], "no run.json"),
        (["--out", str(tmp_path / "no" / "codes.parquet")], "There is no folder"),
        (["--store", str(tmp_path / "nothing")], "There is nothing at"),
    ):
        answer = CliRunner().invoke(app, [*arguments, *more])
        assert answer.exit_code == 2, answer.output
        assert sentence in answer.stderr
        assert "Traceback" not in answer.output
    with pytest.raises(RequestError, match="is no file of labels"):
        read_facts(run / "run.json")
