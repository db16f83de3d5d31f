import os
import re
import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import level, write_video

from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import BadClip
from pipeline.sources import decode
from pipeline.sources.decode import decode_video, read_video

EVERY = FrameSampling(fps=None, max=0, size=32)
CODECS = [
    ("a.webm", "libvpx-vp9", {}),
    ("a.mp4", "libx264", {}),
    ("a.mov", "libx264", {}),
    ("a.mkv", "libx265", {"x265-params": "log-level=none"}),
    ("c.mp4", "libsvtav1", {"preset": "10", "svtav1-params": "rc=0"}),
    ("a.avi", "mpeg4", {"bf": "2"}),
    ("b.avi", "libx264", {"bf": "2"}),
]


def grey(rgb: np.ndarray) -> list[float]:
    return rgb.reshape(len(rgb), -1).mean(axis=1).tolist()


def reason(path: Path, sampling: FrameSampling = EVERY) -> str:
    with pytest.raises(BadClip) as caught:
        decode_video("some/key", path, sampling)
    assert caught.value.key == "some/key"
    assert "\n" not in caught.value.reason
    return caught.value.reason


@pytest.fixture
def webm(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.webm")


@pytest.mark.parametrize(("name", "codec", "options"), CODECS)
def test_codecs_and_containers(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = write_video(tmp_path / name, codec=codec, options=options)
    rgb, time = decode_video("k", path, EVERY)
    assert rgb.shape == (12, 32, 32, 3) and rgb.dtype == np.uint8
    assert time.dtype == np.float64
    np.testing.assert_allclose(time, np.arange(12) / 12, atol=6e-4)  # WebM and Matroska count in milliseconds
    np.testing.assert_allclose(grey(rgb), [level(i) for i in range(12)], atol=4)


def test_ssv2_like_video_at_four_frames_a_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "1.webm", size=(427, 240), count=24)
    rgb, time = decode_video("k", path, FrameSampling())
    assert rgb.shape == (8, 224, 224, 3)
    np.testing.assert_allclose(time, np.arange(8) / 4, atol=1e-3)
    np.testing.assert_allclose(grey(rgb), [level(i) for i in range(0, 24, 3)], atol=4)


@pytest.mark.parametrize("name", ["v.webm", "v.mp4"])
def test_timestamps_are_honoured(tmp_path: Path, name: str) -> None:
    """A variable frame rate that starts late: frames 3 and 5 lie near 0.25 and 0.5 s, the numbers 3 and 6 would not."""
    ticks = [700, 710, 720, 945, 980, 1203, 1950, 2710]
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_video(tmp_path / name, codec=codec, count=len(ticks), ticks=ticks)
    rgb, time = decode_video("k", path, EVERY)
    np.testing.assert_allclose(time, (np.array(ticks) - 700) / 1000, atol=1e-3)
    rgb, time = decode_video("k", path, EVERY.model_copy(update={"fps": 4.0}))
    np.testing.assert_allclose(time, [0.0, 0.245, 0.503, 1.25, 2.01], atol=1e-3)
    np.testing.assert_allclose(grey(rgb), [level(i) for i in (0, 3, 5, 6, 7)], atol=4)


def test_the_crop_is_central(tmp_path: Path) -> None:
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, 24:72] = (0, 200, 0)  # the central square, red to its left and blue to its right
    frame[:, :24], frame[:, 72:] = (200, 0, 0), (0, 0, 200)
    rgb, _ = decode_video("k", write_video(tmp_path / "c.webm", frames=[frame] * 3), EVERY)
    inner = rgb[:, :, 2:-2].astype(int)
    assert inner[..., 1].min() > 150 and inner[..., 0].max() < 60 and inner[..., 2].max() < 60


def quarters() -> np.ndarray:
    """48 x 64: white, red over green, blue."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32], frame[:24, 32:], frame[24:, :32], frame[24:, 32:] = 240, (240, 0, 0), (0, 240, 0), (0, 0, 240)
    return frame


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        ((90, False), lambda a: np.rot90(a, 1)),  # FFmpeg counts counterclockwise, and so does NumPy
        ((-90, False), lambda a: np.rot90(a, -1)),
        ((180, False), lambda a: np.rot90(a, 2)),
        ((0, True), lambda a: a[:, ::-1]),
    ],
)
def test_display_rotation(
    tmp_path: Path,
    rotation: tuple[int, bool],
    turn: Callable[[np.ndarray], np.ndarray],
) -> None:
    path = write_video(tmp_path / "r.mp4", codec="libx264", frames=[quarters()] * 3, rotation=rotation)
    rgb, _ = decode_video("k", path, EVERY)
    expected = turn(quarters())[::1]
    height, width = expected.shape[:2]
    for row, column in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        corner = rgb[0, 4 if row == 0 else -5, 4 if column == 0 else -5].astype(int)
        wanted = expected[row * (height // 4), column * (width // 4)].astype(int)
        assert np.abs(corner - wanted).max() < 40, (row, column, corner, wanted)


def test_a_rotation_that_is_no_right_angle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "r.mp4", codec="libx264", rotation=(30, False))
    assert "no multiple of 90 degrees" in reason(path)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """48 x 48 pixels twice as wide as high show 96 x 48: the crop is the middle half of the columns."""
    frame = np.zeros((48, 48, 3), np.uint8)
    frame[:, 12:36] = 220
    path = write_video(tmp_path / "s.mkv", codec="libx264", frames=[frame] * 3, pixel_aspect=Fraction(2))
    rgb, _ = decode_video("k", path, EVERY)
    assert rgb[:, :, 2:-2].min() > 180
    path = write_video(tmp_path / "t.mkv", codec="libx264", frames=[frame] * 3, pixel_aspect=Fraction(10))
    assert "an aspect of 10, expected 0.125 to 8" in reason(path)


def test_grey_and_odd_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "g.avi", codec="ffv1", pix_fmt="gray", size=(53, 37))
    rgb, _ = decode_video("k", path, EVERY)
    np.testing.assert_allclose(grey(rgb), [level(i) for i in range(12)], atol=2)
    assert (rgb[..., 0] == rgb[..., 2]).all()


def test_two_readings_give_the_same_bytes(webm: Path) -> None:
    first, second = decode_video("k", webm, EVERY), decode_video("k", webm, EVERY)
    assert first[0].tobytes() == second[0].tobytes() and first[1].tobytes() == second[1].tobytes()


def test_stops_once_the_last_wanted_frame_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = []

    class Watched(decode._Clock):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            clocks.append(self)

    monkeypatch.setattr(decode, "_Clock", Watched)
    path = write_video(tmp_path / "long.webm", frames=[np.full((16, 16, 3), i % 200, np.uint8) for i in range(600)])
    rgb, _ = decode_video("k", path, FrameSampling(fps=4, max=4, size=16))
    assert len(rgb) == 4
    assert clocks[0].seen == 11  # frames 0, 3, 6, 9, and 10 to know that 9 is nearest


def test_repeated_timestamps_are_passed_over_and_backward_ones_refused() -> None:
    class Frame:
        width = height = 8
        dts = None
        time_base = Fraction(1, 10)

        def __init__(self, pts: int | None) -> None:
            self.pts = pts

    class Container:
        format = av.ContainerFormat("mov")

    class Stream:
        time_base = Fraction(1, 10)
        average_rate = guessed_rate = Fraction(5)

    def times(*pts: int | None) -> list[float]:
        clock = decode._Clock("k", Container(), Stream())  # type: ignore[arg-type]
        return [time for time, _ in clock.timed(iter([Frame(p) for p in pts]))]  # type: ignore[misc]

    assert times(5, 6, 6, 8) == pytest.approx([0.0, 0.1, 0.3])
    assert times(5, None, None, 10) == pytest.approx([0.0, 0.2, 0.4, 0.5])  # one frame interval each
    assert times(None, None) == pytest.approx([0.0, 0.2])
    with pytest.raises(BadClip, match=r"run backwards: 0.200 s follows 0.300 s"):
        times(5, 8, 7)
    with pytest.raises(BadClip, match=r"a timestamp of 100000 s, expected at most 86400 s"):
        times(0, 1_000_000)
    Stream.average_rate = Stream.guessed_rate = None  # type: ignore[assignment]
    with pytest.raises(BadClip, match=r"no timestamps and the file names no frame rate"):
        times(None, None)


def test_missing_empty_or_no_video(tmp_path: Path) -> None:
    assert "is missing; expected a video file (.webm" in reason(tmp_path / "none.webm")
    (tmp_path / "empty.webm").touch()
    assert "is empty (0 bytes); expected a video file" in reason(tmp_path / "empty.webm")
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 100)
    assert "cannot be decoded" in reason(tmp_path / "text.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert "is not a regular file" in reason(tmp_path / "folder.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is not a regular file" in reason(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(("name", "codec"), [("t.webm", "libvpx-vp9"), ("t.mp4", "libx264"), ("t.avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, name: str, codec: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    data = write_video(tmp_path / name, codec=codec, frames=list(noise)).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    # also where the two frames asked for are still there
    two = reason(tmp_path / name, EVERY.model_copy(update={"max": 2}))
    found = re.search(r"is truncated: it has (\d+) bytes, expected at least (\d+); copy it again", two)
    assert found, two
    assert int(found[1]) == int(len(data) * share) < int(found[2]) <= len(data)  # what follows an MP4's cut is unknown


def test_bytes_after_the_end_are_no_damage(tmp_path: Path) -> None:
    for name, codec in [("t.webm", "libvpx-vp9"), ("t.mp4", "libx264"), ("t.avi", "mpeg4")]:
        path = write_video(tmp_path / name, codec=codec)
        path.write_bytes(path.read_bytes() + b"appended by a careless tool")
        assert len(decode_video("k", path, EVERY)[0]) == 12


def test_live_webm_has_no_sizes(tmp_path: Path, webm: Path) -> None:
    live = tmp_path / "live.webm"
    with av.open(str(webm)) as source, av.open(str(live), "w", format="webm", options={"live": "1"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(decode_video("k", live, EVERY)[0]) == 12


@pytest.mark.parametrize("cover", [False, True])
def test_audio_only_with_and_without_a_cover(tmp_path: Path, cover: bool) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
            container.mux(picture.encode(image.reformat(format="yuvj420p")))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == cover
    assert "has no video stream (it holds: audio" in reason(path)


def test_fewer_frames_than_asked(webm: Path) -> None:
    text = reason(webm, EVERY.model_copy(update={"fps": 2.0, "min": 3}))
    assert "yields 2 of its 12 frames at 2 frames a second, expected at least 3" in text


@pytest.mark.parametrize(("side", "claim"), [(9000, "frames of 9000 x 9000 pixels"), (65535, "no frame size, or one")])
def test_a_header_that_claims_too_much(tmp_path: Path, side: int, claim: str) -> None:
    path = write_video(tmp_path / "h.avi", codec="ffv1", pix_fmt="gray")
    data = path.read_bytes()
    size = data.index(b"strf") + 12  # the BITMAPINFOHEADER's width and height
    assert struct.unpack_from("<ii", data, size) == (64, 48)
    path.write_bytes(data[:size] + struct.pack("<ii", side, side) + data[size + 8 :])
    text = reason(path)
    assert claim in text and "expected at most 67108864 pixels a frame" in text


@pytest.mark.parametrize("limit", ["MAX_SECONDS", "MAX_TAKEN"])
def test_limits(webm: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(decode, limit, {"MAX_SECONDS": 0.9, "MAX_TAKEN": 11}[limit])
    wanted = {
        "MAX_SECONDS": "claims 0.0 hours of video, expected at most",
        "MAX_TAKEN": "more than 11 frames; set frames.max",
    }[limit]
    assert wanted in reason(webm)


def test_a_playlist_named_mp4_opens_no_other_file(tmp_path: Path, webm: Path) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{webm}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(playlist)
    assert "cannot be decoded" in reason(tmp_path / "list.mp4")
    (tmp_path / "list.avi").write_text(f"ffconcat version 1.0\nfile '{webm.name}'\n")
    assert "cannot be decoded" in reason(tmp_path / "list.avi")


@pytest.mark.parametrize("name", ["concat:a.webm", "http:a.webm", "a%03d b'#.webm", "é.webm"])
def test_odd_names(tmp_path: Path, webm: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copy(webm, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(decode_video("k", Path(name), EVERY)[0]) == 12


def test_metadata_in_latin_1(tmp_path: Path) -> None:
    data = write_video(tmp_path / "l.mp4", codec="libx264").read_bytes()
    assert data.count(b"VideoHandler") == 1
    (tmp_path / "l.mp4").write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert len(decode_video("k", tmp_path / "l.mp4", EVERY)[0]) == 12


def test_a_file_that_may_not_be_read(webm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decode, "missing_bytes", refuse)
    assert "cannot be read (Permission denied)" in reason(webm)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_clips_fault_passes(
    webm: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(decode, "resize_crop", fail)
    with pytest.raises(error):
        decode_video("k", webm, EVERY)


@pytest.mark.parametrize(("name", "codec"), [("f.webm", "libvpx-vp9"), ("f.mp4", "libx264"), ("f.avi", "mpeg4")])
def test_damaged_bytes_give_frames_or_a_reason(
    tmp_path: Path, name: str, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_video(tmp_path / name, codec=codec).read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        where = rng.integers(0, len(damaged), rng.integers(1, 20))
        damaged[where] = rng.integers(0, 256, len(where))
        (tmp_path / name).write_bytes(damaged.tobytes())
        try:
            rgb, time = decode_video("k", tmp_path / name, EVERY)
        except BadClip:
            refused += 1
        else:
            assert rgb.shape[1:] == (32, 32, 3) and len(rgb) == len(time) >= 2 and (np.diff(time) > 0).all()
    assert refused > 10
    assert capfd.readouterr() == ("", "")  # FFmpeg's complaints belong into the reason, not on the terminal


def test_read_video_carries_the_reference(webm: Path) -> None:
    clip = read_video(ClipRef(key="7", split="train", text="Holding a cup", path=webm), EVERY)
    assert (clip.key, clip.split, clip.text, len(clip)) == ("7", "train", "Holding a cup", 12)
    assert clip.depth is None and clip.action is None
    with pytest.raises(BadClip, match="listed twice"):
        read_video(ClipRef(key="7", path=webm, problem="listed twice"), EVERY)
