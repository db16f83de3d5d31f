"""Columns of frozen image encoders and of further cameras, in both formats."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from store_factory import FORMATS, folder_bytes, small_record, small_records, small_store

from data_specs.batches import FrameBatch
from data_specs.records import ClipRecord, Images, exclusive_sum
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.store import ShardError, open_store
from pipeline.store.columns import record_arrays, record_digest
from pipeline.store.layout import StoreLayout
from pipeline.store.pixels import decode_images
from pipeline.store.rules import record_problems
from pipeline.store.shard import open_shard
from pipeline.store.tar import write_tar
from pipeline.store.verify import verify
from pipeline.store.zarr_writer import write_zarr

SIZES = {"P": 96, "C": 16, "W": 28}
VIEWS = {"wrist": (20, 30), "cam_high": (12, 8)}


def pictures(frames: int, height: int, width: int, seed: int) -> tuple[Images, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(256, size=(frames, height, width, 3), dtype=np.uint8)
    encoded = []
    for frame in pixels:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return Images(data=np.concatenate(encoded), offset=exclusive_sum(np.array([len(e) for e in encoded]))), pixels


def rich(record: ClipRecord, seed: int = 0) -> ClipRecord:
    frames = len(record)
    rng = np.random.default_rng([seed, frames])
    return replace(
        record,
        vision={
            "dinov2": rng.normal(size=(frames, 9, 6)).astype("<f2"),
            "vggt": rng.normal(size=(frames, 4, 8)).astype("<f2"),
        },
        views={name: pictures(frames, *size, seed)[0] for name, size in VIEWS.items()},
        extra={"action_sum": rng.normal(size=(frames, 2)).astype("<f4")},
    )


def rich_records(count: int = 4) -> list[ClipRecord]:
    return [rich(record, i) for i, record in enumerate(small_records(count))]


@pytest.fixture(params=FORMATS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLayout:
    return small_store(tmp_path / "s", request.param, rich_records(), per_shard=2)


def test_a_store_gives_back_encoders_and_cameras_by_frame(layout: StoreLayout) -> None:
    store = open_store(layout.url)
    assert {"vision/dinov2", "vision/vggt", "views/wrist", "views/cam_high", "extra/action_sum"} <= set(store.columns())
    assert not any(name.endswith(("/data", "/offset")) for name in store.columns())
    for found, expected in zip(store, rich_records(), strict=True):
        assert record_digest(found) == record_digest(expected)
    wanted = [9, 0, 4, 4]
    batch = store.batch(wanted, columns=("vision/dinov2", "views/wrist", "views/cam_high"))
    assert (batch.tokens, batch.rgb) == (None, None)
    assert (batch.vision["dinov2"].dtype, batch.vision["dinov2"].shape) == (torch.float16, (4, 9, 6))
    shown = {name: decode_images(images) for name, images in batch.views.items()}
    assert {name: tuple(p.shape) for name, p in shown.items()} == {"wrist": (4, 20, 30, 3), "cam_high": (4, 12, 8, 3)}
    for b, (clip, frame) in enumerate(zip(*store.clip_of(wanted), strict=True)):
        assert np.array_equal(batch.vision["dinov2"][b].numpy(), rich_records()[clip].vision["dinov2"][frame])
        for name, size in VIEWS.items():
            _, pixels = pictures(len(store[int(clip)]), *size, int(clip))
            assert np.array_equal(shown[name][b].numpy(), pixels[frame])


def test_both_formats_give_equal_content_and_batches(tmp_path: Path) -> None:
    batches: list[FrameBatch] = []
    digests = set()
    for store_format in FORMATS:
        store = open_store(small_store(tmp_path / store_format, store_format, rich_records()).url)
        digests.add(store.digest)
        batches.append(store.batch(range(store.num_frames), columns=("vision/vggt", "views/wrist")))
    assert len(digests) == 1
    assert torch.equal(batches[0].vision["vggt"], batches[1].vision["vggt"])
    assert torch.equal(batches[0].views["wrist"].data, batches[1].views["wrist"].data)
    assert torch.equal(batches[0].views["wrist"].offset, batches[1].views["wrist"].offset)


@pytest.mark.parametrize("store_format", FORMATS)
def test_two_writes_are_equal_byte_for_byte(tmp_path: Path, store_format: str) -> None:
    for name in ("a", "b"):
        small_store(tmp_path / name, store_format, rich_records())
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_clips_without_them_are_the_bytes_they_always_were(tmp_path: Path) -> None:
    """Taken from the schema before there were encoders and cameras; the Zarr file since points are differences."""
    assert record_digest(small_record("a", seed=3)).startswith("f5094fc6620a3965")
    assert record_digest(small_record("b", state=3, action=2)).startswith("1c46aef3385d37a9")
    write_tar(tmp_path / "s.tar", small_records(3))
    write_zarr(tmp_path / "s.zip", small_records(3))
    assert hashlib.sha256((tmp_path / "s.tar").read_bytes()).hexdigest().startswith("cf0188a39dac0424")
    assert hashlib.sha256((tmp_path / "s.zip").read_bytes()).hexdigest().startswith("9361699de7ab5f18")


def test_a_column_that_is_not_there_is_named(layout: StoreLayout) -> None:
    store = open_store(layout.url)
    for column in ("vision/clip", "views/front"):
        with pytest.raises(ValueError, match=f"the store has no '{column}"):
            store.batch([0], columns=(column,))
    with pytest.raises(ValueError, match="views/NAME"):
        store.batch([0], columns=("visions/dinov2",))


@pytest.mark.parametrize("name", ["vision/dinov2", "vision/vggt", "views/wrist/data"])
def test_a_flipped_bit_names_its_array(layout: StoreLayout, name: str) -> None:
    assert verify(layout) == []
    path = Path(layout.files.path(layout.data_name("000001")))
    data = bytearray(path.read_bytes())
    array = record_arrays(rich_records()[3])[name]
    data[data.index(array.tobytes()) + array.nbytes // 2] ^= 0x10
    path.write_bytes(bytes(data))
    damages = verify(layout)
    assert {damage.shard for damage in damages} == {"000001"}
    assert name in {damage.array for damage in damages}


def _changed(record: ClipRecord, change: str) -> ClipRecord:
    images = record.views["wrist"]
    nan = record.vision["dinov2"].copy()
    nan[1, 2, 3] = np.nan
    empty = np.array([0, images.offset[1], images.offset[1], images.offset[3]])
    return {
        "name": replace(record, views={"wrist.left": images}),
        "vision name": replace(record, vision={"dino/v2": record.vision["dinov2"]}),
        "dtype": replace(record, vision={"dinov2": record.vision["dinov2"].astype("<f4")}),
        "frames": replace(record, vision={"dinov2": record.vision["dinov2"][1:]}),
        "flat": replace(record, vision={"dinov2": record.vision["dinov2"][:, 0]}),
        "nan": replace(record, vision={"dinov2": nan}),
        "offsets": replace(record, views={"wrist": replace(images, offset=images.offset + 1)}),
        "empty": replace(record, views={"wrist": replace(images, offset=empty)}),
        "cut": replace(record, views={"wrist": replace(images, data=images.data[:-1])}),
    }[change]


@pytest.mark.parametrize(
    ("change", "array", "problem"),
    [
        ("name", "views/wrist.left/data", "only letters"),
        ("vision name", "vision/dino/v2", "only letters"),
        ("dtype", "vision/dinov2", "float32, expected float16"),
        ("frames", "vision/dinov2", "2 along axis 0"),
        ("flat", "vision/dinov2", "expected dimensions"),
        ("nan", "vision/dinov2", "1 of 162 values are not finite"),
        ("offsets", "views/wrist/offset", "offsets start at"),
        ("empty", "views/wrist/offset", "frame 1: no image"),
        ("cut", "views/wrist/offset", "offsets end at"),
    ],
)
def test_the_rules_name_what_is_wrong(change: str, array: str, problem: str) -> None:
    record = rich(small_record("a"))
    assert list(record_problems(record, SIZES)) == []
    found = dict(record_problems(_changed(record, change), SIZES))
    assert problem in found[array]


@pytest.mark.parametrize("part", ["data", "offset"])
@pytest.mark.parametrize("store_format", FORMATS)
def test_half_a_camera_in_a_shard_is_damage(tmp_path: Path, store_format: str, part: str) -> None:
    import shutil
    import tarfile
    import zipfile

    path, cut = tmp_path / "whole", tmp_path / "cut"
    records = [rich(small_record("a"))]
    if store_format == "zarr":
        write_zarr(path, records)
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(cut, "w") as out:
            for name in archive.namelist():
                if not name.startswith(f"views/wrist/{part}/"):
                    out.writestr(name, archive.read(name))
    else:
        write_tar(path, records)
        with tarfile.open(path) as archive, tarfile.open(cut, "w") as out:
            for member in archive:
                if f"views.wrist.{part}" not in member.name:
                    out.addfile(member, archive.extractfile(member))
    shutil.copy(cut, path)
    from pipeline.store.files import MappedFile

    with pytest.raises(ShardError, match=f"views/wrist/{part}: is missing"):
        open_shard(MappedFile(str(path)), "s", store_format)  # type: ignore[arg-type]


def test_the_summary_counts_their_bytes(layout: StoreLayout) -> None:
    summary = inspect_store(layout.url, verify=True)
    assert summary.verified is True
    assert summary.bytes_per_frame_by_array["vision/dinov2"] >= 9 * 6 * 2
    assert summary.bytes_per_frame_by_array["views/wrist/data"] > 100
    assert summary.vision == {"dinov2": (9, 6), "vggt": (4, 8)}
    assert summary.views == {"cam_high": (12, 8), "wrist": (20, 30)}
    text = "\n".join(summary_lines(summary))
    assert "vision     dinov2: 9 tokens of 6, vggt: 4 tokens of 8" in text
    assert "views      cam_high: 12 x 8, wrist: 20 x 30" in text
