"""JSON that is too long, too deep, of too many values, or of values that no number holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_files import little_memory, sparse
from store_factory import small_store

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline import foreign
from pipeline.config import FailedError, RequestError
from pipeline.foreign import BadJson, json_lines, parse_json, read_json
from pipeline.sim.record import record
from pipeline.sources import open_source
from pipeline.store.errors import ShardError, StoreError
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store
from pipeline.store.verify import verify
from pipeline.train.checkpoint import RunFolder

GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[" * 100_000, "is nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "is nested deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "is nested deeper than 64 levels"),
        (b"9" * 5_000, "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_what_is_no_json_for_us(text: bytes, sentence: str) -> None:
    with pytest.raises(BadJson, match=sentence) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_as_deep_as_is_read_and_no_deeper() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64)
    assert parse_json('{"a": [1, "[[[["]}') == {"a": [1, "[[[["]}


def test_many_values_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_VALUES", 1000)
    assert len(parse_json(json.dumps([0] * 1000))) == 1000
    with little_memory(1), pytest.raises(BadJson, match="holds more than the 1,000 values"):
        parse_json(b"[" + b"[]," * 10_000 + b"[]]")


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.json", 1 << 40)
    with little_memory(1), pytest.raises(BadJson, match=r"longer than the 67,108,864 bytes .* \(1,099,511,627,776\)"):
        read_json(path)


def test_a_long_line_is_not_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.jsonl", GIGABYTE, b'{"a": 1}\n\n{"a": "')
    lines = json_lines(path)
    assert next(lines) == (1, {"a": 1})
    with little_memory(32), pytest.raises(BadJson, match="line 3, is longer than the 8,388,608 bytes"):
        next(lines)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, lambda path: next(json_lines(path))):
        with pytest.raises(BadJson, match="is no regular file"):
            read(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["train.json", "labels.json"])
def test_a_label_file_of_a_gigabyte(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.json").write_text('[{"id": "1", "label": "moving", "template": "moving"}]')
    sparse(tmp_path / name, GIGABYTE, b'[{"id": "1", "label": "')
    with little_memory(), pytest.raises(ValueError, match=rf"label file .*{name} is longer than the 134,217,728 bytes"):
        open_source("ssv2", tmp_path).clips()


def test_two_label_files_of_a_gigabyte_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    sparse(tmp_path / "train.json", GIGABYTE), sparse(tmp_path / "labels/train.json", GIGABYTE)
    with little_memory(), pytest.raises(ValueError, match="is longer than"):
        open_source("ssv2", tmp_path).clips()


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"id": "9" * 201}, "expected a string of at most 200 characters"),
        ({"id": "a\x00b"}, "expected a string of at most 200 characters"),
        ({"id": "\ud800"}, "expected a string of at most 200 characters"),
        ({"label": "A" * 10_001}, "a label that has 10,001 characters, expected at most 10,000"),
        ({"label": "half \ud800"}, "a label that holds half a character"),
        ({"template": "\ud800"}, "a template that holds half a character"),
    ],
)
def test_labels_that_no_store_can_keep(tmp_path: Path, item: dict[str, str], problem: str) -> None:
    whole = {"id": "1", "label": "moving", "template": "moving", **item}
    (tmp_path / "train.json").write_text(json.dumps([whole, {"id": "2", "label": "b", "template": "b"}]))
    (tmp_path / "1.webm").touch()
    problems = [ref.problem for ref in open_source("ssv2", tmp_path).clips() if "missing" not in str(ref.problem)]
    assert len(problems) == 1 and problem in str(problems[0]) and len(str(problems[0])) < 400


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rgbd") / "data"
    record("rgbd", out, clips=1, seed=3, tasks="reach", size=24)
    return out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is longer than"),
        (b"[" * 100_000, "is nested deeper than 64 levels"),
        (b"[]", "is not an object"),
        (b'{"time": [0, 1e999]}', "not finite"),
        (b'{"time": [0, ' + b"9" * 400 + b"]}", "does not fit the rgbd layout"),
        (b'{"time": [1, 0]}', "that increase"),
        (b'{"time": [0, 1e9]}', "that increase, within 86400 s"),
        (b'{"time": [[0]]}', "expected shape"),
    ],
)
def test_a_recorded_clip(recorded: Path, content: bytes | None, sentence: str) -> None:
    path = next(recorded.rglob("clip.json"))
    good = path.read_bytes()
    try:
        sparse(path, GIGABYTE) if content is None else path.write_bytes(content)
        source = open_source("tabletop", recorded)
        with little_memory(), pytest.raises(BadClip, match=sentence) as caught:
            source.read(source.clips()[0], FrameSampling(size=24))
        assert str(path.parent) in caught.value.reason
    finally:
        path.write_bytes(good)


def test_a_recordings_index(recorded: Path) -> None:
    path = recorded / "dataset.json"
    good = path.read_bytes()
    try:
        for content, sentence in (
            (None, "is longer than"),
            (b"[" * 9999, "is nested deeper"),
            (b"7", "is not of format"),
        ):
            sparse(path, GIGABYTE) if content is None else path.write_bytes(content)
            with little_memory(), pytest.raises(ValueError, match=rf"dataset\.json {sentence}"):
                open_source("tabletop", recorded).clips()
        values = json.loads(good)
        for change in ({"views": 7}, {"clips": {"a": 1}}, {"views": [["agent"]]}):
            path.write_text(json.dumps({**values, **change}))
            with pytest.raises(ValueError, match="no list of views"):
                open_source("tabletop", recorded).clips()
        for change in ({"key": "x" * 201}, {"key": "../a"}, {"split": "\ud800"}):
            path.write_text(json.dumps({**values, "clips": [{**values["clips"][0], **change}]}))
            with pytest.raises(ValueError, match=r"which names no folder|is of a split"):
                open_source("tabletop", recorded).clips()
    finally:
        path.write_bytes(good)


BOMBS: list[Callable[[Path], object]] = [
    lambda path: sparse(path, GIGABYTE),
    lambda path: path.write_bytes(b"[" * 100_000),
    lambda path: path.write_bytes(b'{"schema_version": 1, "run_version": 1, "a": ' + b"[" * 300 + b"]" * 300 + b"}"),
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_stores_own_files(tmp_path: Path, bomb: Callable[[Path], object]) -> None:
    small_store(tmp_path / "s")
    layout = StoreLayout.open(str(tmp_path / "s"))
    bomb(tmp_path / "s/shards/000000.json")
    with little_memory(), pytest.raises(ShardError, match="Shard 000000: its sidecar is damaged"):
        list(layout.sidecars())
    assert any(damage.shard == "000000" for damage in verify(layout))
    bomb(tmp_path / "s/rejected.jsonl"), bomb(tmp_path / "s/SHA256SUMS")
    assert {"rejected.jsonl", "SHA256SUMS"} <= {damage.shard for damage in verify(layout)}
    bomb(tmp_path / "s/manifest.json")
    with little_memory(), pytest.raises(StoreError, match=r"manifest\.json"):
        Store(str(tmp_path / "s"))


def test_half_a_character_in_a_sentence(tmp_path: Path) -> None:
    """Found by fuzzing: the sentence could not be written to a terminal."""
    (tmp_path / "run.json").write_text('{"run_version": "\\ud800"}')
    with pytest.raises(RequestError, match=r"is of run version \\ud800, this") as caught:
        RunFolder(tmp_path).record()
    str(caught.value).encode()


@pytest.mark.parametrize("bomb", BOMBS[:2])
def test_a_runs_own_files(tmp_path: Path, bomb: Callable[[Path], object]) -> None:
    bomb(tmp_path / "run.json"), bomb(tmp_path / "checkpoints.json")
    for read in (RunFolder(tmp_path).record, RunFolder(tmp_path).pointers):
        with little_memory(), pytest.raises(FailedError, match=r"\.json cannot be read: it is"):
            read()
