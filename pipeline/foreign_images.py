"""Images that somebody else made: the size in the header is looked at before anything of that size is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from pipeline.foreign import shortened, unreadable

MAX_PIXELS = 64 << 20
"""Of one picture: more than 8K video has, 200 MB as RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is read, whatever a file is called: others would start Pillow's other readers, Ghostscript among them."""


class BadPicture(ValueError):
    """Not an image, damaged, or too large. The message follows the image's name: `has 9 x 9 pixels, ...`."""


@contextmanager
def picture(file: Path | BinaryIO, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """An opened image, not decoded yet, of at most `MAX_PIXELS`.

    BadPicture for another one, and for whatever Pillow raises in the block; FileNotFoundError.
    """
    try:
        if isinstance(file, Path) and not file.is_file() and file.exists():  # a pipe would be waited for
            raise BadPicture("is not a regular file")
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadPicture(f"has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS} pixels")
            yield image
    except (BadPicture, FileNotFoundError):
        raise
    except unreadable(Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"cannot be decoded ({shortened(error)})") from error
