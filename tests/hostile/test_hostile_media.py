"""Videos and images whose headers lie, that end early, or hold nothing."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_files import little_memory
from PIL import Image
from video_files import write_video

from data_specs.batches import ImageBatch
from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sources import open_source
from pipeline.sources.decode import decode_video
from pipeline.store.errors import StoreError
from pipeline.store.pixels import decode_images

EVERY = FrameSampling(fps=None, max=0, size=16)


def patched(path: Path, box: bytes, at: int, form: str, *values: int) -> Path:
    """The file with numbers written over what follows the `at` bytes after the name of a box."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(box) + at, *values)
    path.write_bytes(data)
    return path


def outcome(path: Path) -> str:
    """The sentence, or the number of frames; without the memory that the file claims."""
    with little_memory():
        try:
            return str(len(decode_video("k", path, EVERY)[0]))
        except BadClip as error:
            assert error.key == "k" and "\n" not in error.reason and len(error.reason) < 500
            return error.reason


def mp4(tmp_path: Path) -> Path:
    return write_video(tmp_path / "a.mp4", codec="mpeg4")


CLAIMS: dict[str, Callable[[Path], Path]] = {
    "1e9 samples": lambda path: patched(path, b"stsz", 12, ">I", 10**9),
    "1e9 samples of one size": lambda path: patched(path, b"stsz", 8, ">II", 10, 10**9),
    "1e9 samples in a chunk": lambda path: patched(path, b"stsc", 12, ">III", 1, 10**9, 1),
    "1e9 times": lambda path: patched(path, b"stts", 12, ">I", 10**9),
    "2^32 - 1 times": lambda path: patched(path, b"stts", 8, ">I", 2**32 - 1),
    "1e9 chunks": lambda path: patched(path, b"stco", 8, ">I", 10**9),
    "no samples": lambda path: patched(path, b"stsz", 12, ">I", 0),
    "a track that is cut off": lambda path: patched(path, b"trak", -4, ">I", 2**31),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_mp4_that_claims(tmp_path: Path, claim: str) -> None:
    """It gives the frames that are there, or a sentence."""
    said = outcome(CLAIMS[claim](mp4(tmp_path)))
    assert said == "12" or "expected" in said, said


def test_an_mp4_of_all_of_it(tmp_path: Path) -> None:
    path = mp4(tmp_path)
    for change in CLAIMS.values():
        change(path)
    assert "expected" in outcome(path)


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (65_535, 65_535), (0, 48), (2**31 - 1, 1)])
def test_an_avi_of_large_frames(tmp_path: Path, width: int, height: int) -> None:
    path = patched(write_video(tmp_path / "a.avi", codec="ffv1", pix_fmt="gray"), b"strf", 12, "<ii", width, height)
    assert "expected at most 67108864 pixels a frame" in outcome(path)


def test_an_mp4_of_large_frames(tmp_path: Path) -> None:
    """The sizes in the sample's description; those in the stream itself say otherwise."""
    said = outcome(patched(mp4(tmp_path), b"mp4v", 28, ">HH", 65_535, 65_535))
    assert said == "12" or "expected" in said, said


def test_a_stream_that_grows_in_its_middle(tmp_path: Path) -> None:
    small = [np.full((48, 64, 3), 50, np.uint8)] * 3
    path = write_video(tmp_path / "a.mkv", codec="mjpeg", pix_fmt="yuvj420p", frames=small)
    data = bytearray(path.read_bytes())
    frame = data.rindex(b"\xff\xc0")  # the last picture's header: bits, height, width
    struct.pack_into(">HH", data, frame + 5, 65_000, 65_000)
    path.write_bytes(data)
    said = outcome(path)
    assert "expected" in said or "frames change" in said or "damaged" in said or said == "2", said


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.avi", "a.mkv"])
def test_videos_that_end_early(tmp_path: Path, name: str, share: float) -> None:
    path = write_video(tmp_path / name, codec="libvpx-vp9" if name != "a.avi" else "mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    said = outcome(path)
    assert any(word in said for word in ("truncated", "is empty", "cannot be decoded")), said


def test_a_video_without_frames(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    assert "expected" in outcome(tmp_path / "a.mkv")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these claims with little in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def jpeg(path: Path, side: int) -> bytes:
    Image.new("RGB", (16, 16)).save(path, "JPEG")
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("1.png", lambda _: png(100_000, 100_000), "100000 x 100000 pixels, expected at most|exceeds limit"),
        ("1.png", lambda _: png(9_000, 9_000), "has 9000 x 9000 pixels, expected at most 67108864 pixels"),
        ("1.png", lambda _: png(2**31 - 1, 2**31 - 1), "pixels, expected at most|cannot be decoded"),
        ("1.png", lambda _: png(0, 16), "cannot be decoded|differ|expected"),
        ("1.png", lambda _: png(8, 8, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(80 << 20)))), "cannot be decoded"),
        ("1.png", lambda _: png(4_000, 4_000), "cannot be decoded"),
        ("1.jpg", lambda path: jpeg(path, 65_500), "pixels, expected at most|cannot be decoded"),
        ("1.jpg", lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
    ],
)
def test_images_that_claim(tmp_path: Path, name: str, make: Callable[[Path], bytes], sentence: str) -> None:
    import re

    folder = tmp_path / "v/frames"
    folder.mkdir(parents=True)
    for other in ("1", "2"):
        (folder / name.replace("1", other)).write_bytes(make(tmp_path / "made.jpg"))
    source = open_source("video", tmp_path / "v")
    with little_memory(120), pytest.raises(BadClip) as caught:
        source.read(source.clips()[0], EVERY)
    said = caught.value.reason
    assert re.search(sentence, said) and name in said and "\n" not in said, said


@pytest.mark.parametrize(
    "data", [png(100_000, 100_000), png(9_000, 9_000), b"GIF89a" + bytes(20), b"", b"\xff\xd8\xff"]
)
def test_stored_pictures(data: bytes) -> None:
    import torch

    images = ImageBatch(
        data=torch.from_numpy(np.frombuffer(data or b"\x00", np.uint8).copy()), offset=torch.tensor([0, len(data)])
    )
    with little_memory(), pytest.raises(StoreError, match="A stored picture"):
        decode_images(images)


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_pictures_of_a_recording(tmp_path: Path, kind: str) -> None:
    from pipeline.sim.record import record

    record("rgbd", tmp_path / "data", clips=1, seed=3, tasks="reach", size=24)
    path = min((tmp_path / "data").rglob(f"{kind}/*.png"))
    source = open_source("tabletop", tmp_path / "data")
    (ref,) = source.clips()
    for content, sentence in (
        (png(100_000, 100_000), "cannot be decoded|expected at most 67108864 pixels"),
        (png(9_000, 9_000), "has 9000 x 9000 pixels, expected at most 67108864 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be decoded"),
    ):
        path.write_bytes(content)
        with little_memory(), pytest.raises(BadClip, match=sentence) as caught:
            source.read(ref, FrameSampling(size=24))
        assert "000000.png" in caught.value.reason and str(ref.path) in caught.value.reason
