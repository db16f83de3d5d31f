"""Parquet files, paths in metadata, and numbers that no robot has."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hostile_files import change_json, little_memory, sparse
from pyarrow import parquet
from store_factory import small_store

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline import bounded_parquet
from pipeline.bounded_parquet import BadTable, open_parquet, read_parquet
from pipeline.config import FailedError, RequestError
from pipeline.foreign import inside
from pipeline.label_file import KEY, read_codes
from pipeline.sim.record import record
from pipeline.sources import open_source
from pipeline.sources.lerobot_meta import filled
from pipeline.store.errors import StoreError
from pipeline.store.index import INDEX_SCHEMA
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store

EVERY = FrameSampling(fps=None, max=4, size=16)
FORMATS = ("lerobot", "lerobot-v2.1")
NAMES = {"episode_index": 7, "episode_chunk": 0, "video_key": "observation.images.top"}


@pytest.mark.parametrize(
    "template",
    [
        "{episode_index.__class__.__mro__}",
        "{episode_index.real}",
        "{video_key[0]}",
        "{episode_index!r}",
        "{episode_index:999999999}",
        "{episode_index:>3}",
        "{episode_index:{episode_chunk}}",
        "{0}",
        "{}",
        "{secret}",
        "{",
        "}",
        "{episode_index",
    ],
)
def test_templates_that_ask_for_more(template: str) -> None:
    with pytest.raises(ValueError, match=r"asks for|format|encountered|expected"):
        filled(template, NAMES)


def test_templates() -> None:
    found = filled("videos/{video_key}/chunk-{episode_chunk:03d}/e_{episode_index:06d}.mp4", NAMES)
    assert found == "videos/observation.images.top/chunk-000/e_000007.mp4"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\x00b", "a\nb", "x" * 5000, ".." + "/.." * 50])
def test_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"lies outside of|is too long, or no text"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/./b/../c") == tmp_path / "a/c"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("lerobot")
    for name in FORMATS:
        record(name, out / name, clips=2, seed=3, tasks="reach", size=16)
    return {name: out / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def root(recorded: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded[request.param], tmp_path / "data"))


def refusal(root: Path) -> str:
    """The sentence that comes of the listing, or of a clip."""
    with little_memory(80):
        try:
            source = open_source("lerobot", root)
            said = [ref.problem for ref in source.clips() if ref.problem]
            for ref in source.clips():
                try:
                    source.read(ref, EVERY)
                except BadClip as error:
                    said.append(error.reason)
        except ValueError as error:
            said = [str(error)]
    assert said and all("\n" not in text and len(text) < 800 for text in said), said
    return said[0]


INFO: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a path that leads out": (lambda i: i.update(data_path="../../etc/passwd"), "lies outside of"),
    "an absolute path": (lambda i: i.update(data_path="/etc/passwd"), "lies outside of"),
    "a video elsewhere": (lambda i: i.update(video_path="/etc/passwd"), "lies outside of"),
    "an attribute": (lambda i: i.update(data_path="{episode_index.__class__}"), "asks for"),
    "a width": (lambda i: i.update(video_path="{video_key:999999999}"), "asks for"),
    "no chunks": (lambda i: i.update(chunks_size=0), "chunks_size is 0"),
    "infinite chunks": (lambda i: i.update(chunks_size=float("inf")), "does not fit LeRobot's format"),
    "no rate": (lambda i: i.update(fps=float("nan")), "fps is nan"),
    "a rate of 400 digits": (lambda i: i.update(fps=10**400), "does not fit LeRobot's format"),
    "features that are none": (lambda i: i.update(features=[1]), "does not fit LeRobot's format"),
    "10^12 dimensions": (lambda i: i["features"]["action"].update(shape=[10**12]), "steps, 1000000000000"),
    "a deep info": (lambda i: i.update(features=json.loads("[" * 70 + "]" * 70)), "is nested deeper than 64 levels"),
    "another version": (lambda i: i.update(codebase_version="v" * 9999), "is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("what", INFO)
def test_what_info_says(root: Path, what: str) -> None:
    import re

    change, sentence = INFO[what]
    change_json(root / "meta/info.json", lambda info: change(info) and None)
    assert re.search(sentence, refusal(root))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"length": 10**12}, "rows, expected 1 to 1000000"),
        ({"length": -3}, "rows, expected 1 to 1000000"),
        ({"length": 10**17}, "does not fit LeRobot's format"),
        ({"episode_index": 10**15}, "does not fit LeRobot's format"),
        ({"episode_index": -1}, "does not fit LeRobot's format"),
        ({"tasks": ["x" * 10_001]}, "its task has 10,001 characters"),
    ],
)
def test_what_episodes_say(root: Path, changed: dict[str, Any], sentence: str) -> None:
    listed = root / "meta/episodes.jsonl"
    if listed.is_file():
        first, *others = listed.read_text().splitlines()
        listed.write_text("\n".join([json.dumps({**json.loads(first), **changed}), *others]))
    else:
        (listed,) = (root / "meta/episodes").rglob("*.parquet")
        rows = parquet.read_table(listed).to_pylist()
        parquet.write_table(pa.Table.from_pylist([{**rows[0], **changed}, *rows[1:]]), listed)
    assert sentence in refusal(root)


def test_an_episode_list_of_a_gigabyte(recorded: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(recorded["lerobot-v2.1"], tmp_path / "data"))
    sparse(root / "meta/episodes.jsonl", 1 << 30, b'{"episode_index": 0, "tasks": ["')
    assert "line 1, is longer than the 8,388,608 bytes" in refusal(root)


@pytest.mark.parametrize("begin", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_video_that_begins_nowhere(recorded: dict[str, Path], tmp_path: Path, begin: float) -> None:
    root = Path(shutil.copytree(recorded["lerobot"], tmp_path / "data"))
    (listed,) = (root / "meta/episodes").rglob("*.parquet")
    rows = parquet.read_table(listed).to_pylist()
    name = next(name for name in rows[0] if name.endswith("from_timestamp"))
    parquet.write_table(pa.Table.from_pylist([{**rows[0], name: begin}, *rows[1:]]), listed)
    assert "begins at" in refusal(root)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (lambda n: pa.array([np.nan] * n), "is stamped nan s"),
        (lambda n: pa.array(["x"] * n), "timestamp is no column of numbers"),
        (lambda n: pa.array([[1.0, 2.0]] * n), "timestamp is no column of numbers"),
        (lambda n: pa.nulls(n), "is stamped nan s"),
        (lambda n: pa.array([b"\xff"] * n), "timestamp is no column of numbers"),
    ],
)
def test_stamps_of_another_kind(root: Path, values: Callable[[int], Any], sentence: str) -> None:
    for path in (root / "data").rglob("*.parquet"):
        table = parquet.read_table(path)
        at = table.column_names.index("timestamp")
        parquet.write_table(table.set_column(at, "timestamp", values(table.num_rows)), path)
    assert sentence in refusal(root)


def test_a_value_that_is_stored_once_and_stands_a_million_times(tmp_path: Path) -> None:
    """100 GB of text in some kilobytes of Parquet."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), pa.array(["x" * 100_000]))
    parquet.write_table(pa.table({"a": text}), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(BadTable, match="unpacks to more than the 1,000,000 bytes"):
        read_parquet(tmp_path / "a.parquet", ["a"], most_bytes=1_000_000, batch=64)


def test_more_rows_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "a.parquet")
    monkeypatch.setattr(bounded_parquet, "MAX_ROWS", 2)
    with pytest.raises(BadTable, match="claims 3 rows in 1 groups, expected 0 to 2"):
        open_parquet(tmp_path / "a.parquet", most_rows=bounded_parquet.MAX_ROWS)
    with pytest.raises(BadTable, match="has no column 'b'; it has a"):
        open_parquet(tmp_path / "a.parquet", ["b"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadTable, match="is not a regular file"):
        open_parquet(tmp_path / "pipe")


def codes_file(path: Path, facts: Any = None, **columns: Any) -> Path:
    good: dict[str, Any] = {"run": {"weights_sha256": "0"}, "store": {"digest": "1"}, "offset_seconds": 1.0}
    table = pa.table({"clip": ["a", "b"], "frame": [0, 1], "code_0": [1, 2], **columns})
    text = json.dumps(good) if facts is None else facts
    parquet.write_table(table.replace_schema_metadata({KEY: text}), path)
    return path


@pytest.mark.parametrize(
    ("facts", "columns", "sentence"),
    [
        ("[" * 100_000, {}, "is no file of labels \\(is nested deeper"),
        ("{}", {}, "is no file of labels"),
        ('{"run": 1, "store": 2, "offset_seconds": 3}', {}, "is no file of labels"),
        (None, {"frame": [-1, 0]}, "expected 0 to"),
        (None, {"code_0": [-1, 0]}, "expected 0 to"),
        (None, {"code_0": [2**40, 0]}, "expected 0 to"),
        (None, {"code_0": ["x", "y"]}, "expected whole numbers"),
        (None, {"code_0": [np.nan, 1.0]}, "expected whole numbers"),
        (None, {"code_0": [None, 1]}, "expected whole numbers"),
        (None, {"clip": [1, 2]}, "clips without a key"),
        (None, {"clip": [None, "a"]}, "clips without a key"),
    ],
)
def test_codes(tmp_path: Path, facts: Any, columns: dict[str, Any], sentence: str) -> None:
    path = codes_file(tmp_path / "codes.parquet", facts, **columns)
    with pytest.raises((RequestError, FailedError), match=sentence) as caught:
        read_codes(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


LISTS = pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        (pa.array([[1.0, 2.0], [3.0, float("nan")]], LISTS), "not finite"),
        (pa.array([[1.0, 2.0], None], LISTS), "1 empty"),
        (pa.array([[1.0, None], [3.0, 4.0]], LISTS), "gaps"),
        (pa.array([[1.0], [3.0, 4.0]], pa.list_(pa.float32())), "expected lists of one length"),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), "of float32"),
        (pa.array([[], []], pa.list_(pa.float32(), 0)), "expected none to be|cannot be read"),
        (pa.array([1.0, 2.0]), "expected lists of one length"),
        (None, "has the codes alone"),
    ],
)
def test_latents_behind_codes(tmp_path: Path, vectors: Any, sentence: str) -> None:
    path = codes_file(tmp_path / "codes.parquet", **({} if vectors is None else {"quantised": vectors}))
    with pytest.raises((RequestError, FailedError), match=sentence) as caught:
        read_codes(path, latents=True)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600
    assert read_codes(path).latents is None
    good = codes_file(tmp_path / "good.parquet", quantised=pa.array([[1.0, 2.0], [3.0, 4.0]], LISTS))
    assert np.array_equal(read_codes(good, latents=True).latents, [[1, 2], [3, 4]])  # type: ignore[arg-type]


def changed_index(path: Path, **columns: Any) -> Store:
    """The store whose index says something else of its first clip."""
    layout = small_store(path)
    table = layout.index()
    rows = table.to_pylist()
    rows[0].update(columns)
    made = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).replace_schema_metadata(table.schema.metadata)
    parquet.write_table(made, path / "index.parquet")
    return Store(str(path))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"row": -1}, "a clip in row -1"),
        ({"frames": 0}, "one of 0 frames"),
        ({"frames": -5}, "one of -5 frames"),
        ({"shard": "../../../tmp/out"}, "a shard '../../../tmp/out' that it does not name"),
    ],
)
def test_an_index_of_what_no_store_has(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        changed_index(tmp_path / "s", **columns)


def test_an_index_of_two_billion_frames(tmp_path: Path) -> None:
    store = changed_index(tmp_path / "s", frames=2**31 - 1)
    with little_memory(), pytest.raises(StoreError, match=r"times for 21474836|has other frames than the index says"):
        store.batch([0])


@pytest.mark.parametrize("names", ["[" * 10_000, "{}", "[1]", '["a\\u0000"]'])
def test_an_index_that_names_no_shards(tmp_path: Path, names: str) -> None:
    layout = small_store(tmp_path / "s")
    table = layout.index()
    meta = {**table.schema.metadata, b"cla_shards": names}
    parquet.write_table(table.replace_schema_metadata(meta), tmp_path / "s/index.parquet")
    again = StoreLayout.open(str(tmp_path / "s"))
    assert again.index().schema.metadata[b"cla_shards"] == json.dumps(layout.committed()).encode()  # from the sidecars
