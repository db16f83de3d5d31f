import json
import pickle
import sys
import uuid

import fsspec  # noqa: F401  (its registry)
import pytest
from store_factory import FORMATS, folder_bytes, small_manifest, small_record, small_records, small_store, write_shards

from pipeline.config import RequestError
from pipeline.store import index as index_module
from pipeline.store import layout as layout_module
from pipeline.store import open_store
from pipeline.store.files import StoreFiles
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums
from pipeline.store.verify import verify
from pipeline.store.writer import ShardWriter


def test_opening_what_is_no_store_says_so(tmp_path):
    with pytest.raises(RequestError, match="There is nothing at"):
        open_store(str(tmp_path / "none"))
    with pytest.raises(RequestError, match=r"There is no manifest\.json at"):
        open_store(str(tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="expected a store"):
        open_store(str(tmp_path / "file"))


@pytest.mark.parametrize(("version", "remedy"), [(2, "install the version"), (0, "extract it anew")])
def test_another_schema_version_is_refused_with_a_remedy(tmp_path, version, remedy):
    small_store(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    values["schema_version"], values["unknown"] = version, 1
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(RequestError, match=f"schema version {version}.*{remedy}"):
        StoreLayout.open(str(tmp_path))


def test_a_manifest_of_something_else_is_no_store(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(RequestError, match="not part of a store"):
        StoreLayout.open(str(tmp_path))


def test_a_store_that_exists_asks_what_to_do(tmp_path):
    small_store(tmp_path)
    with pytest.raises(RequestError, match=r"--resume.*--overwrite"):
        StoreLayout.create(str(tmp_path), small_manifest())


def test_resume_refuses_another_recipe_and_names_the_keys(tmp_path):
    small_store(tmp_path)
    other = small_manifest()
    other = other.model_copy(update={"recipe": {**other.recipe, "name": "full"}, "seed": 3})
    with pytest.raises(RequestError, match=r"these differ: recipe\.name, seed\."):
        StoreLayout.create(str(tmp_path), other, "resume")


def test_resume_starts_a_store_where_there_is_none(tmp_path):
    assert StoreLayout.create(str(tmp_path / "s"), small_manifest(), "resume").committed() == []


def test_overwrite_leaves_nothing_of_the_old_store(tmp_path):
    small_store(tmp_path / "a", "webdataset", bad=[("x", "is broken")])
    small_store(tmp_path / "a", "zarr", small_records(2), mode="overwrite")
    small_store(tmp_path / "b", "zarr", small_records(2))
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
def test_a_folder_of_other_things_is_left_alone(tmp_path, mode):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match=r"is no store \(it holds thesis\.tex\)"):
        StoreLayout.create(str(tmp_path), small_manifest(), mode)
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_remote_store_is_the_same_store(tmp_path, store_format):
    url = f"memory://{uuid.uuid4().hex}/s"
    remote = small_store(url, store_format, bad=[("x", "is broken")])
    local = small_store(tmp_path, store_format, bad=[("x", "is broken")])
    for name, data in folder_bytes(tmp_path).items():
        assert remote.files.read_bytes(name) == data, name
    assert remote.files.names("shards") == local.files.names("shards")
    assert verify(remote) == []
    a, b = open_store(url), open_store(str(tmp_path))
    assert a[2].tokens.feat.tobytes() == b[2].tokens.feat.tobytes()
    assert a.batch([0, 5, 2], ("points",)).points.depth.equal(b.batch([0, 5, 2], ("points",)).points.depth)
    small_store(url, store_format, small_records(1), mode="overwrite")
    assert len(open_store(url)) == 1


def test_s3_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # or another test has loaded it
    with pytest.raises(RequestError, match=r"concerto-laq\[s3\]"):
        StoreLayout.open("s3://bucket/store")


def test_an_unknown_protocol_is_answered():
    with pytest.raises(RequestError, match="no URL that fsspec knows"):
        StoreLayout.open("floppy://a/store")


def test_the_index_has_a_row_a_clip_and_is_rebuilt(tmp_path):
    layout = small_store(tmp_path, records=small_records(5)[::-1], per_shard=2)
    written = (tmp_path / "index.parquet").read_bytes()
    rows = layout.index().to_pylist()
    assert [row["key"] for row in rows] == [f"clips/{i:02d}" for i in range(5)]  # by key, whatever the shards
    assert (rows[4]["shard"], rows[4]["row"], rows[4]["frames"]) == ("000000", 0, 1)
    assert rows[3]["time"] == [0.0, 0.25, 0.5, 0.75] and rows[3]["last_time"] == 0.75
    (tmp_path / "index.parquet").unlink()
    assert layout.index().to_pylist() == rows
    layout.write_index()
    assert (tmp_path / "index.parquet").read_bytes() == written


def test_a_store_is_listed_with_few_sidecars_in_memory(tmp_path, monkeypatch):
    """Of a million clips they would take gigabytes; what is written is the same."""
    records = [small_record(f"k{i * 7 % 20:02d}", frames=2, seed=i) for i in range(20)]
    layout = small_store(tmp_path / "s", records=records, per_shard=2, bad=[("bad", "why")])
    before, read = folder_bytes(tmp_path / "s"), []
    read_bytes = StoreFiles.read_bytes
    monkeypatch.setattr(index_module, "_TOGETHER", 5)
    monkeypatch.setattr(
        StoreFiles, "read_bytes", lambda self, name, **limit: read.append(name) or read_bytes(self, name, **limit)
    )
    listing = layout.sidecars()
    assert not read and next(listing).shard == "000000" and read == ["shards/000000.json"]
    for name in ("index.parquet", "rejected.jsonl", "SHA256SUMS"):
        layout.files.remove(name)
    layout.write_index()
    layout.write_rejected()
    write_sums(layout)
    assert folder_bytes(tmp_path / "s") == before and verify(layout) == []


def test_sidecars_of_a_store_elsewhere_come_in_groups(monkeypatch):
    records = [small_record(f"k{i:02d}", frames=2, seed=i) for i in range(8)]
    layout = small_store(f"memory://{uuid.uuid4().hex}/s", records=records, per_shard=1)
    groups = []
    read_many = StoreFiles.read_many
    monkeypatch.setattr(layout_module, "_TOGETHER", 3)
    monkeypatch.setattr(
        StoreFiles, "read_many", lambda self, names: groups.append(len(names)) or read_many(self, names)
    )
    listing = layout.sidecars()
    assert not groups and next(listing).shard == "000000" and groups == [3]
    assert len(list(listing)) == 7 and groups == [3, 3, 2]


def test_a_stale_index_is_not_believed(tmp_path):
    layout = small_store(tmp_path, records=small_records(2), per_shard=1)
    writer = ShardWriter(layout, "000002")
    writer.add(small_record("late"))
    writer.commit()
    assert len(open_store(str(tmp_path))) == 3


def test_a_rejected_clip_drops_out_when_a_retry_holds_it(tmp_path):
    layout = small_store(tmp_path, bad=[("x", "is broken"), ("é\n", "has a strange name")])
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert lines == [{"key": "x", "reason": "is broken"}, {"key": "é\n", "reason": "has a strange name"}]
    writer = ShardWriter(layout, "retry-000000")
    writer.add(small_record("x"))
    writer.reject("é\n", "is still strange")
    writer.commit()
    layout.write_rejected()
    assert [bad.reason for bad in layout.rejected()] == ["is still strange"]
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 1


def test_statistics_are_added_to_the_manifest(tmp_path):
    layout = small_store(tmp_path).with_statistics({"state": {"mean": [0.5]}})
    assert StoreLayout.open(str(tmp_path)).manifest == layout.manifest
    assert layout.manifest.statistics == {"state": {"mean": [0.5]}}
    StoreLayout.create(str(tmp_path), small_manifest(), "resume")


def test_a_layout_can_be_sent_to_a_worker(tmp_path):
    layout = pickle.loads(pickle.dumps(small_store(tmp_path)))
    write_shards(layout, [small_record("more")], 1)
    assert layout.sidecar("000000").rows[0].key == "more"
