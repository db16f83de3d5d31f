"""What is fuzzed: for each kind of file that somebody else may have made, valid samples, and all that reads them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.config import FailedError, RequestError

OURS = (BadClip, RequestError, FailedError)
"""What a reader may raise; the constructor and the listing of a source also a plain ValueError, as they say."""

EVERY = FrameSampling(fps=None, max=6, min=1, size=16)


class Refused(Exception):
    """A reader has answered with a sentence."""


@dataclass(frozen=True)
class Target:
    """`make` writes valid samples into a folder, `read` reads everything in a changed copy of it."""

    make: Callable[[Path], None]
    read: Callable[[Path], None]


def sentence(error: Exception) -> str:
    """The message of an exception, which must be one line of a sane length."""
    text = str(error)
    assert text and "\n" not in text.strip() and len(text) < 6_000, f"no sentence: {text[:300]!r} ({len(text)})"
    text.encode()
    return text


def check_clip(clip: Clip) -> None:
    frames = len(clip.time)
    assert frames >= 1 and clip.rgb.shape == (frames, 16, 16, 3) and clip.rgb.dtype == np.uint8
    assert np.isfinite(clip.time).all() and (np.diff(clip.time) > 0).all()
    clip.text.encode()
    for array in (clip.state, clip.action, clip.intrinsic, clip.extrinsic, clip.extra.get("action_sum")):
        assert array is None or (len(array) == frames and np.isfinite(array).all())
    for view in clip.views.values():
        assert len(view) == frames and view.dtype == np.uint8


def _source(dataset: str, **options: str) -> Callable[[Path], None]:
    def read(root: Path) -> None:
        from pipeline.sources import open_source

        try:
            source = open_source(dataset, root, options=options)
            refs = source.clips()
        except ValueError as error:
            assert type(error) is ValueError, f"{type(error).__name__}: {error}"
            sentence(error)
            raise Refused from error
        assert len({ref.key for ref in refs}) == len(refs)
        refused = 0
        for ref in refs[:8]:
            try:
                check_clip(source.read(ref, EVERY))
            except BadClip as error:
                sentence(error)
                refused += 1
        if refused:
            raise Refused

    return read


def _recorded(name: str, **more: Any) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        from pipeline.sim.record import record

        size = {"ssv2": None, "rgbd": 24}.get(name, 16)
        record(name, out, clips=2, seed=3, tasks="reach", size=size, **more)

    return make


def _make_videos(out: Path) -> None:
    from PIL import Image
    from video_files import write_video

    write_video(out / "a.webm", count=5)
    write_video(out / "b.mp4", codec="mpeg4", count=5)
    write_video(out / "c.mkv", codec="ffv1", count=3, size=(32, 32))
    write_video(out / "d.avi", codec="mpeg4", count=5)
    (out / "frames").mkdir()
    for i, suffix in enumerate(("png", "jpg", "webp", "bmp")):
        Image.fromarray(np.full((16, 24, 3), 40 * i, np.uint8)).save(out / "frames" / f"{i}.{suffix}")


def _make_store(store_format: Any, **more: Any) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        from store_factory import small_records, small_store

        records = small_records(3, **more)
        small_store(out / "s", store_format, records, per_shard=2, **({"S": 3, "A": 2} if more else {}))

    return make


def _read_store(folder: Path) -> None:
    from pipeline.store.damaged import damaged_shards
    from pipeline.store.errors import ShardError
    from pipeline.store.layout import StoreLayout
    from pipeline.store.loader import Store
    from pipeline.store.verify import verify

    url = str(folder / "s")
    layout = StoreLayout.open(url)
    problems = verify(layout)
    for problem in problems:
        assert "\n" not in str(problem)
    refused = bool(problems)
    for look in (lambda: damaged_shards(layout, sums=True), lambda: layout.sidecars(), lambda: layout.index()):
        try:
            look()
        except FailedError as error:
            sentence(error)
            refused = True
    store = Store(url)
    for clip in range(len(store)):
        try:
            record = store[clip]
            assert len(record.time) == len(store.frames(clip))
            store.batch(list(store.frames(clip)), columns=("tokens", "cells", "points", "camera", "rgb"))
        except ShardError as error:
            sentence(error)
            refused = True
        except ValueError as error:  # of `batch`: a column that is not there
            assert type(error) is ValueError and "the store" in str(error), repr(error)
            refused = True
    _ = (store.time, store.digest)
    if refused:
        raise Refused


def _make_weights(out: Path) -> None:
    import torch
    from safetensors.torch import save

    from pipeline.train.checkpoint import RunFolder, RunRecord

    run = RunFolder(out / "run")
    run.start(RunRecord(task="line", recipe="line", config={"seed": 0}), {"train": ["a"]})
    record = RunRecord(task="line", recipe="line", config={"seed": 0}, step=3)
    run.save(record, {"w": torch.ones(3)}, {"step": 3, "optimizer": {"m": torch.ones(3)}}, best=True)
    (out / "run/metrics.jsonl").write_text('{"split": "train", "step": 1}\n{"split": "val", "step": 2}\n')
    (out / "w.safetensors").write_bytes(save({"w": torch.ones(2, 3)}, metadata={"config": json.dumps({"dim": 3})}))
    torch.save({"state_dict": {"w": torch.ones(2, 3)}, "config": {"dim": 3}}, out / "w.pt")


def _read_weights(folder: Path) -> None:
    import torch

    from pipeline.train.checkpoint import RunFolder, load_state, load_weights
    from pipeline.train.metrics import read_metrics
    from pipeline.weights_files import read_file

    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(3))
    run = RunFolder(folder / "run")
    refused = False
    for look in (
        run.record,
        lambda: load_weights(model, run.folder("best")),
        lambda: load_state(run.folder("last")),
        lambda: read_metrics(folder / "run", "train"),
        *(lambda name=name: read_file(folder / name) for name in ("w.safetensors", "w.pt") if (folder / name).exists()),
    ):
        try:
            look()  # type: ignore[operator]
        except OURS as error:
            sentence(error)
            refused = True
    if refused:
        raise Refused


def _make_codes(out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from pipeline.label_file import KEY

    facts = {"run": {"weights_sha256": "00", "name": "r"}, "store": {"digest": "11"}, "offset_seconds": 0.5}
    vectors = pa.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], pa.list_(pa.float32(), 2))
    table = pa.table(
        {"clip": ["a", "a", "b"], "frame": [0, 1, 0], "code_0": [1, 2, 3], "code_1": [0, 0, 255], "quantised": vectors}
    )
    parquet.write_table(table.replace_schema_metadata({KEY: json.dumps(facts)}), out / "codes.parquet")


def _read_codes(folder: Path) -> None:
    from pipeline.label_file import read_codes

    codes = read_codes(folder / "codes.parquet", latents=True)
    assert codes.latents is not None and np.isfinite(codes.latents).all() and len(codes.latents) == len(codes.clip)
    assert codes.codes.shape[0] == len(codes.clip) == len(codes.frame)
    assert codes.codes.min(initial=0) >= 0 and codes.frame.min(initial=0) >= 0


TARGETS: dict[str, Target] = {
    "store-zarr": Target(_make_store("zarr"), _read_store),
    "store-tar": Target(_make_store("webdataset"), _read_store),
    "ssv2": Target(_recorded("ssv2"), _source("ssv2")),
    "video": Target(_make_videos, _source("video")),
    "libero": Target(_recorded("libero"), _source("libero", views="eye_in_hand")),
    "aloha": Target(_recorded("aloha"), _source("aloha")),
    "lerobot": Target(_recorded("lerobot"), _source("lerobot")),
    "lerobot-v2.1": Target(_recorded("lerobot-v2.1"), _source("lerobot")),
    "rgbd": Target(_recorded("rgbd", fps=4.0), _source("tabletop")),
    "weights": Target(_make_weights, _read_weights),
    "codes": Target(_make_codes, _read_codes),
}


def _make_note(out: Path) -> None:
    (out / "note.json").write_text('{"a": [1, 2, 3]}')


def _abort(folder: Path) -> None:
    import os

    if not (folder / "note.json").exists() or (folder / "note.json").read_text() != '{"a": [1, 2, 3]}':
        os.abort()


def _litter(folder: Path) -> None:
    if folder.name == "case":
        (folder.parent / "tmp/litter").touch()
    raise Refused


def _trip(folder: Path) -> None:
    if (folder / "note.json").read_text() != '{"a": [1, 2, 3]}':
        raise KeyError("a traceback")


BROKEN: dict[str, Target] = {
    "aborts": Target(_make_note, _abort),
    "litters": Target(_make_note, _litter),
    "trips": Target(_make_note, _trip),
}
"""Readers that are wrong, each in a way that the fuzzer must find."""
