import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import level, write_video

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline import foreign_images
from pipeline.sources import images, open_source
from pipeline.sources.video import VideoSource

EVERY = FrameSampling(fps=None, max=0, size=32)


def video(root: Path, **options: str) -> VideoSource:
    source = open_source("video", root, None, options)
    assert isinstance(source, VideoSource)
    return source


def put_image(path: Path, value: int = 100, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def keys(source: VideoSource) -> list[str]:
    return [ref.key for ref in source.clips()]


def test_nested_videos_of_every_kind(tmp_path: Path) -> None:
    original = write_video(tmp_path / "one.webm")
    for name in ("two.MP4", "a/three.mkv", "a/b/four.Avi", "a/b/five.mov"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(original.read_bytes())
    for name in (".hidden.webm", ".cache/six.webm", "notes.txt", "a/table.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(original.read_bytes())
    source = video(tmp_path)
    assert keys(source) == ["a/b/five", "a/b/four", "a/three", "one", "two"]
    assert source.ignored == 2  # the text and the table; what is hidden is not looked at
    for i, ref in enumerate(source.clips()):
        assert (ref.index, ref.text, ref.split, ref.problem) == (i, "", "", None)
        assert source.read(ref, EVERY).rgb.shape == (12, 32, 32, 3)


def test_keys_that_would_collide(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.webm", "b c.mp4", "b.c.mp4", "é.mp4", "plain.mp4"):
        (tmp_path / name).touch()
    first = {ref.path.name: ref.key for ref in video(tmp_path).clips() if ref.path}
    assert len(set(first.values())) == 6
    assert first["plain.mp4"] == "plain"
    assert first["a.mp4"].startswith("a-") and first["a.webm"].startswith("a-")
    assert first["b c.mp4"].startswith("b-c-")
    assert all(c.isascii() and (c.isalnum() or c in "-_/") for key in first.values() for c in key)
    (tmp_path / "a.mov").touch()  # one more changes none of the others
    again = {ref.path.name: ref.key for ref in video(tmp_path).clips() if ref.path}
    assert {name: again[name] for name in first} == first


def test_images_in_natural_order(tmp_path: Path) -> None:
    for i, name in enumerate(["f1.png", "f2.PNG", "f3.bmp", "f10.png", "f11.webp"]):
        put_image(tmp_path / "walk/left" / name, level(i))
    (tmp_path / "walk/left/notes.txt").touch()
    source = video(tmp_path)
    assert keys(source) == ["walk/left"] and source.ignored == 1
    clip = source.read(source.clips()[0], EVERY)
    np.testing.assert_array_equal(clip.rgb[:, 16, 16, 0], [level(i) for i in range(5)])
    np.testing.assert_allclose(clip.time, np.arange(5) / 30)
    slow = video(tmp_path, fps="2")
    clip = slow.read(slow.clips()[0], FrameSampling(fps=1, size=32))
    np.testing.assert_allclose(clip.time, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(clip.rgb[:, 16, 16, 0], [level(i) for i in (0, 2, 4)])


def test_the_root_itself_may_be_the_sequence(tmp_path: Path) -> None:
    put_image(tmp_path / "1.png"), put_image(tmp_path / "2.png")
    assert keys(video(tmp_path)) == ["clip"]


def test_one_image_is_no_clip_and_thumbnails_are_none_either(tmp_path: Path) -> None:
    put_image(tmp_path / "one/1.png")
    write_video(tmp_path / "two/a.webm")
    put_image(tmp_path / "two/a.png"), put_image(tmp_path / "two/b.png")
    source = video(tmp_path)
    assert keys(source) == ["two/a"] and source.ignored == 3


def test_a_folder_and_a_video_of_the_same_name(tmp_path: Path) -> None:
    write_video(tmp_path / "take.webm")
    put_image(tmp_path / "take/1.png"), put_image(tmp_path / "take/2.png")
    assert len(set(keys(video(tmp_path)))) == 2


def test_links(tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside/secret.webm")
    put_image(tmp_path / "outside/images/1.png"), put_image(tmp_path / "outside/images/2.png")
    root = tmp_path / "root"
    write_video(root / "real.webm")
    (root / "inside.webm").symlink_to("real.webm")
    (root / "leaving.webm").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "circle").symlink_to(root)
    (root / "broken.webm").symlink_to("gone.webm")
    source = video(root)
    assert keys(source) == ["broken", "inside", "real"]
    assert source.ignored == 1
    with pytest.raises(BadClip, match="is a link to a missing file, expected a video"):
        source.read(source.clips()[0], EVERY)
    (tmp_path / "to-root").symlink_to(root)
    assert keys(video(tmp_path / "to-root")) == ["broken", "inside", "real"]


def test_a_folder_without_videos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(), (tmp_path / "b.txt").touch(), (tmp_path / "README").touch()
    with pytest.raises(ValueError, match=r"holds no video \(.webm, .*files found: 2 .txt, 1 without suffix"):
        video(tmp_path).clips()


def test_bad_videos_are_listed_and_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    source = video(tmp_path)
    assert keys(source) == ["empty", "text"]
    for ref, reason in zip(source.clips(), ("is empty", "cannot be decoded"), strict=True):
        with pytest.raises(BadClip, match=reason):
            source.read(ref, EVERY)


def read_one(root: Path, sampling: FrameSampling = EVERY) -> str:
    source = video(root)
    with pytest.raises(BadClip) as caught:
        source.read(source.clips()[0], sampling)
    return caught.value.reason


def test_images_of_different_sizes(tmp_path: Path) -> None:
    for i in range(6):
        put_image(tmp_path / f"{i}.png", size=(40, 32 + (i == 3)))
    wanted = "3.png has 40 x 33 pixels, expected 40 x 32 as in 0.png"
    assert wanted in read_one(tmp_path)
    # frames 0, 2 and 4 agree: the sequence is wrong all the same
    assert wanted in read_one(tmp_path, EVERY.model_copy(update={"stride": 2, "max": 3}))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_images(tmp_path: Path, suffix: str, damage: str) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / f"{i}{suffix}")
    data = (tmp_path / f"1{suffix}").read_bytes()
    broken = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello" * 100}[damage]
    (tmp_path / f"1{suffix}").write_bytes(broken)
    text = read_one(tmp_path)
    assert f"1{suffix} cannot be decoded" in text and "expected an image" in text and "\n" not in text


def test_an_image_that_vanished_or_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(tmp_path / "1.png"), put_image(tmp_path / "2.png")
    with pytest.raises(BadClip, match=r"gone\.png is missing"):
        images.read_images("k", [tmp_path / "1.png", tmp_path / "gone.png"], 30.0, EVERY)
    monkeypatch.setattr(foreign_images, "MAX_PIXELS", 40 * 32 - 1)
    assert "1.png has 40 x 32 pixels, expected at most 1279 pixels" in read_one(tmp_path)


def test_a_vanished_folder(tmp_path: Path) -> None:
    put_image(tmp_path / "s/1.png"), put_image(tmp_path / "s/2.png")
    source = video(tmp_path)
    ref = source.clips()[0]
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    (tmp_path / "s").rmdir()
    with pytest.raises(BadClip, match="is missing"):
        source.read(ref, EVERY)


def test_fewer_images_than_asked(tmp_path: Path) -> None:
    put_image(tmp_path / "1.png"), put_image(tmp_path / "2.png")
    assert "yields 1 of its 2 frames at 4 frames a second" in read_one(tmp_path, FrameSampling())


def test_modes_and_orientation(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 200 << 8, np.uint16)).save(tmp_path / "1.png")  # 16 bits
    Image.new("L", (30, 20), 200).save(tmp_path / "2.png")
    Image.new("P", (30, 20), 0).save(tmp_path / "3.png")
    Image.new("RGBA", (30, 20), (200, 200, 200, 255)).save(tmp_path / "4.png")
    source = video(tmp_path)
    rgb = source.read(source.clips()[0], EVERY).rgb
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[:, 9, 9], [[200] * 3, [200] * 3, [0] * 3, [200] * 3])

    upper_half = np.zeros((32, 32, 3), np.uint8)
    upper_half[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in ("t/1.png", "t/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(upper_half).save(tmp_path / name, exif=exif)
    turned = source.read(video(tmp_path / "t").clips()[0], EVERY).rgb
    assert turned[0, 4, 16, 0] == 0 and turned[0, 28, 16, 0] == 255


@pytest.mark.parametrize("fps", ["0", "-3", "nan", "inf", "fast", ""])
def test_a_rate_that_is_none(tmp_path: Path, fps: str) -> None:
    with pytest.raises(ValueError, match=r"expected images a second, above 0"):
        video(tmp_path, fps=fps)


def test_options_and_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no option 'fsp'; its options are fps. Did you mean 'fps'\?"):
        video(tmp_path, fsp="3")
    with pytest.raises(ValueError, match="has no splits; leave --split train out"):
        open_source("video", tmp_path, "train")
    with pytest.raises(ValueError, match="needs --root"):
        VideoSource(None, None, {})


def test_a_pickled_source_reads(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm")
    source = video(tmp_path, fps="5")
    ref = source.clips()[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fps == 5 and copy.read(ref, EVERY).rgb.tobytes() == source.read(ref, EVERY).rgb.tobytes()
