import filecmp
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from video_factory import disc_video

import pipeline.sources
from data_specs.datasets import ClipRef
from pipeline.config import ExtractRecipe, RequestError, override
from pipeline.extract.decoding import DecodingError
from pipeline.extract.partition import clips_per_shard, listing_digest, plan_shards
from pipeline.extract.progress import Reporter, Tally
from pipeline.extract.runner import ExtractRequest, run_extract
from pipeline.inspect_shards import inspect_store
from pipeline.recipes import extract_recipe
from pipeline.store.errors import StoreError
from pipeline.store.writer import ShardWriter

CLIPS = 5


class _Quiet(Reporter):
    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.seen: list[tuple[int, int]] = []

    def update(self, tally: Tally, total: int) -> None:
        self.seen.append((tally.clips + tally.rejected, total))
        if self.stop_after is not None and tally.clips >= self.stop_after:
            raise KeyboardInterrupt


def _recipe(*changes: str) -> ExtractRecipe:
    # two clips a shard
    base = ["frames.max=2", "points.count=512", "points.min_points=100", "store.shard_mb=0.28"]
    random = ["vggt.weights=random:0", "concerto.weights=random:0"]
    return override(extract_recipe("tiny"), [*base, *random, *changes])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(CLIPS):
        disc_video(root / f"{i}.mp4", seed=i)
    return root


def _request(root: Path, out: Path, recipe: ExtractRecipe | None = None, **more: Any) -> ExtractRequest:
    values: dict[str, Any] = {"split": None, "options": {}, "limit": None, "format": "zarr", "workers": 0}
    return ExtractRequest(dataset="video", root=root, out=str(out), recipe=recipe or _recipe(), **{**values, **more})


@pytest.fixture(scope="module")
def reference(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "reference"
    summary = run_extract(_request(videos, out), _Quiet())
    assert (summary.clips, summary.frames, summary.rejected) == (CLIPS, 2 * CLIPS, ())
    assert summary.tally.shards == 3
    assert summary.random_models == ("vggt (random:0)", "concerto (random:0)")
    return out


def _same_bytes(one: Path, two: Path) -> bool:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    return all(filecmp.cmp(one / f, two / f, shallow=False) for f in files)


def test_a_store_is_verified_and_two_runs_are_equal_byte_for_byte(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    summary = inspect_store(str(reference), verify=True)
    assert summary.verified is True
    assert summary.clips == CLIPS
    run_extract(_request(videos, tmp_path / "again", workers=1), _Quiet())
    assert _same_bytes(reference, tmp_path / "again")


@pytest.mark.parametrize("changes", [{"format": "webdataset"}, {"workers": 2, "recipe": _recipe("store.shard_mb=50")}])
def test_the_digest_does_not_depend_on_format_workers_or_shard_size(
    videos: Path, reference: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run_extract(_request(videos, tmp_path / "other", **changes), _Quiet())
    other = inspect_store(str(tmp_path / "other"), verify=True)
    assert other.verified is True
    assert other.digest == inspect_store(str(reference)).digest


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_a_stopped_run_is_resumed_to_the_same_bytes(
    videos: Path, reference: Path, tmp_path: Path, stop_after: int
) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run_extract(_request(videos, out), _Quiet(stop_after))
    partial = inspect_store(str(out), verify=True)
    assert partial.verified is True
    assert partial.clips < CLIPS
    report = _Quiet()
    summary = run_extract(_request(videos, out, mode="resume"), report)
    assert summary.tally.skipped_clips == partial.clips
    assert report.seen[-1] == (CLIPS - partial.clips, CLIPS - partial.clips)
    assert _same_bytes(reference, out)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_in_batches_is_resumed_to_the_same_bytes(videos: Path, tmp_path: Path, stop_after: int) -> None:
    # two clips a batch; a shard holds whole batches, so that every clip keeps its company
    recipe = _recipe("batch.clips=2", "batch.frames=4", "batch.clouds=3")
    run_extract(_request(videos, tmp_path / "whole", recipe), _Quiet())
    with pytest.raises(KeyboardInterrupt):
        run_extract(_request(videos, tmp_path / "stopped", recipe), _Quiet(stop_after))
    run_extract(_request(videos, tmp_path / "stopped", recipe, mode="resume"), _Quiet())
    assert _same_bytes(tmp_path / "whole", tmp_path / "stopped")
    # and a clip's company is the same whatever the shards and the workers are
    large = override(recipe, ["store.shard_mb=50"])
    run_extract(_request(videos, tmp_path / "large", large, format="webdataset", workers=1), _Quiet())
    assert inspect_store(str(tmp_path / "large")).digest == inspect_store(str(tmp_path / "whole")).digest


def test_a_shard_holds_whole_batches() -> None:
    per_shard = clips_per_shard(_recipe("batch.clips=3"), 128)
    assert per_shard == 3
    refs = [ClipRef(key=str(i)) for i in range(8)]
    assert [plan.batches(3) for plan in plan_shards(refs, 6)] == [[3, 3], [2]]


def test_leftovers_of_a_killed_run_are_removed_on_resume(videos: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    run_extract(_request(videos, out), _Quiet())
    # as after SIGKILL between the rename of a shard and its sidecar, and while an index was written
    sidecar = sorted((out / "shards").glob("*.json"))[1]
    sidecar.unlink()
    (out / "index.parquet").unlink()
    run_extract(_request(videos, out, mode="resume"), _Quiet())
    assert _same_bytes(reference, out)


def test_an_existing_store_asks_and_a_different_recipe_is_refused_by_name(
    videos: Path, reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"--resume.*--overwrite"):
        run_extract(_request(videos, reference), _Quiet())
    with pytest.raises(RequestError, match=r"recipe\.points\.count, recipe\.seed|recipe\.seed, recipe\.points\.count"):
        run_extract(_request(videos, reference, _recipe("points.count=600", "seed=3"), mode="resume"), _Quiet())
    with pytest.raises(RequestError, match=r"dataset\.options\.limit"):
        run_extract(_request(videos, reference, mode="resume", limit=2), _Quiet())
    with pytest.raises(RequestError, match="expected a store"):
        run_extract(_request(videos, tmp_path / "nothing", mode="resume"), _Quiet())
    out = tmp_path / "replaced"
    run_extract(_request(videos, out, limit=1), _Quiet())
    run_extract(_request(videos, out, mode="overwrite"), _Quiet())
    assert _same_bytes(reference, out)


@pytest.fixture
def bad_folder(videos: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mixed"
    root.mkdir()
    for path in videos.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    good = (videos / "0.mp4").read_bytes()
    (root / "a-empty.mp4").write_bytes(b"")
    (root / "b-text.webm").write_text("this is no video")
    (root / "c-cut.mp4").write_bytes(good[: len(good) // 3])
    disc_video(root / "d-short.mp4", frames=1)
    return root


def test_bad_clips_are_recorded_and_nothing_replaces_them(bad_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    summary = run_extract(_request(bad_folder, out), _Quiet())
    assert (summary.clips, len(summary.rejected)) == (CLIPS, 4)
    assert summary.too_many_bad
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"][0] for line in lines] == ["a", "b", "c", "d"]
    assert all(len(line["reason"]) > 20 for line in lines)
    assert inspect_store(str(out), verify=True).verified is True
    allowed = run_extract(_request(bad_folder, tmp_path / "b", _recipe("max_bad_fraction=0.5")), _Quiet())
    assert not allowed.too_many_bad


def test_rejected_clips_are_tried_again_only_when_asked(bad_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    run_extract(_request(bad_folder, out), _Quiet())
    before = {p.name: p.read_bytes() for p in (out / "shards").iterdir()}
    disc_video(bad_folder / "a-empty.mp4", seed=9)
    untouched = run_extract(_request(bad_folder, out, mode="resume"), _Quiet())
    assert len(untouched.rejected) == 4
    again = run_extract(_request(bad_folder, out, mode="resume", retry_rejected=True), _Quiet())
    assert (again.clips, len(again.rejected), again.tally.clips) == (CLIPS + 1, 3, 1)
    assert "a-empty" not in (out / "rejected.jsonl").read_text()
    after = {p.name: p.read_bytes() for p in (out / "shards").iterdir()}
    assert all(after[name] == content for name, content in before.items())  # shards never change
    assert inspect_store(str(out), verify=True).verified is True
    # and the content equals that of a store that met the mended file at once
    fresh = run_extract(_request(bad_folder, tmp_path / "fresh"), _Quiet())
    assert fresh.clips == CLIPS + 1
    assert inspect_store(str(tmp_path / "fresh")).digest == inspect_store(str(out)).digest


def test_a_store_of_bad_clips_only_is_a_store(tmp_path: Path) -> None:
    root = tmp_path / "bad"
    root.mkdir()
    (root / "x.mp4").write_bytes(b"nothing")
    summary = run_extract(_request(root, tmp_path / "store"), _Quiet())
    assert (summary.clips, len(summary.rejected), summary.bad_fraction) == (0, 1, 1.0)
    assert inspect_store(str(tmp_path / "store"), verify=True).verified is True


def test_a_dying_decoder_is_a_sentence_and_the_store_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(pipeline.sources._SOURCES, "crashing", "crashing_source:CrashingSource")
    request = replace(_request(tmp_path, tmp_path / "store", workers=1), dataset="crashing", root=None)
    with pytest.raises(DecodingError, match="--resume"):
        run_extract(request, _Quiet())
    assert inspect_store(str(tmp_path / "store"), verify=True).clips == 0


def test_a_failure_while_writing_stops_the_run_and_keeps_what_is_committed(
    videos: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ShardWriter.commit

    def full_disk(self: ShardWriter) -> Any:
        if self.shard == "000001":
            raise StoreError("The disk is full.")
        return commit(self)

    out = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "commit", full_disk)
        with pytest.raises(StoreError, match="disk is full"):
            run_extract(_request(videos, out), _Quiet())
    assert inspect_store(str(out), verify=True).clips == 2
    run_extract(_request(videos, out, mode="resume"), _Quiet())
    assert _same_bytes(reference, out)


def test_plans_depend_on_the_listing_and_the_recipe_alone(videos: Path) -> None:
    from pipeline.sources import open_source

    refs = open_source("video", videos).clips()
    per_shard = clips_per_shard(_recipe(), 128)
    assert per_shard == 2
    plans = plan_shards(refs, per_shard)
    assert [plan.name for plan in plans] == ["000000", "000001", "000002"]
    assert [ref.key for plan in plans for ref in plan.refs] == [ref.key for ref in refs]
    assert listing_digest(refs) != listing_digest(refs[:-1])
    assert clips_per_shard(_recipe("store.shard_mb=0.001"), 128) == 1
