"""A folder of images as a clip."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from data_specs.arrays import Array
from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sources.decode import MAX_PIXELS, MAX_TAKEN
from pipeline.sources.frames import check_count, pick, resize_crop

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_WANTED = f"expected an image ({', '.join(IMAGE_SUFFIXES)})"


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts `frame2` before `frame10`; names that differ only in leading zeros by the name."""
    parts = [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name.lower()) if p]
    return parts, name


def read_images(key: str, paths: list[Path], fps: float, sampling: FrameSampling) -> tuple[Array, Array]:
    """The images that `sampling` takes of a sequence at `fps`, upright, resized and cropped.

    Returns:
        rgb u1 [F,S,S,3] with S = `sampling.size`; time f8 [F], i / fps of image i.

    Raises:
        BadClip: an image is missing, damaged, too large or of another size than the first; fewer than `sampling.min`
            are taken, or more than the limit.
    """
    size: tuple[int, int] | None = None

    def opened() -> Iterator[tuple[float, Path]]:
        # The headers of all images up to the last one taken are read, for a size that changes between two taken
        # images is a mistake as well.
        nonlocal size
        for index, path in enumerate(paths):
            found = _image_size(key, path)
            if size is not None and found != size:
                raise BadClip(
                    key,
                    f"{path.name} has {found[0]} x {found[1]} pixels, expected {size[0]} x {size[1]} as in"
                    f" {paths[0].name}; the images of a sequence share one size",
                )
            size = found
            yield index / fps, path

    taken: list[Array] = []
    times: list[float] = []
    for time, path in pick(opened(), sampling):
        if len(taken) == MAX_TAKEN:
            raise BadClip(key, f"the clip yields more than {MAX_TAKEN} frames; set frames.max, or a lower frames.fps")
        taken.append(resize_crop(decode_image(key, path, path), size=sampling.size)[0])
        times.append(time)
    check_count(key, len(taken), sampling, len(paths))
    return np.stack(taken), np.array(times, dtype=np.float64)


def _image_size(key: str, path: Path) -> tuple[int, int]:
    """Width and height from the header, checked against the limit before anything is decoded."""
    with _Problems(key, path), Image.open(path, formats=_FORMATS) as image:
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadClip(key, f"{path} has {width} x {height} pixels, expected at most {MAX_PIXELS} pixels")
    return width, height


def decode_image(key: str, name: str | Path, file: Path | BinaryIO) -> Array:
    """u1 [H,W,3], turned as its EXIF orientation says; BadClip, with `name`, for a damaged or too large image."""
    with _Problems(key, name), Image.open(file, formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadClip(key, f"{name} has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            grey = (np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class _Problems:
    """Turns what Pillow raises for a file that is missing or damaged into BadClip."""

    def __init__(self, key: str, name: str | Path) -> None:
        self._key = key
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise BadClip(self._key, f"{self._name} is missing; {_WANTED}") from None
        damaged = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
        if isinstance(error, damaged):
            raise BadClip(self._key, f"{self._name} cannot be decoded ({error}); {_WANTED}") from error
