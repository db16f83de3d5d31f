"""A folder of images as a clip."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from data_specs.arrays import Array
from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.foreign_images import BadPicture, picture
from pipeline.sources.decode import MAX_TAKEN
from pipeline.sources.frames import check_count, pick, resize_crop

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
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
    with _opened(key, path, path) as image:
        return image.width, image.height


def decode_image(key: str, name: str | Path, file: Path | BinaryIO) -> Array:
    """u1 [H,W,3], turned as its EXIF orientation says; BadClip, with `name`, for a damaged or too large image."""
    with _opened(key, name, file) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            grey = (np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@contextmanager
def _opened(key: str, name: str | Path, file: Path | BinaryIO) -> Iterator[Image.Image]:
    """The image, not decoded yet. BadClip for one that is missing, damaged or too large, in the block too."""
    try:
        with picture(file) as image:
            yield image
    except FileNotFoundError:
        raise BadClip(key, f"{name} is missing; {_WANTED}") from None
    except BadPicture as error:
        raise BadClip(key, f"{name} {error}; {_WANTED}") from error
