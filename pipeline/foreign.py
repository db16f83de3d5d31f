"""Bytes that somebody else made: JSON and text within bounds, paths that stay in their folder, images of a sane size.

What is read is bounded before it is parsed: a file that claims or is more than that is answered with a sentence.
"""

import json
import lzma
import os
import pickle
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON = 64 << 20
"""Bytes of a JSON file, unless its reader says otherwise: some thousand times what is usual."""

MAX_LINE = 8 << 20
"""Bytes of a line of a JSON Lines file."""

MAX_VALUES = 8_000_000
"""Values of a JSON file, each of which takes up to 100 bytes of memory, whatever it takes in the file."""

MAX_DEPTH = 64
"""Levels of a JSON file: ours have 6. What is much deeper breaks whatever goes through it by recursion."""

MAX_PATH = 4096
"""Characters of a path in a file."""

UNREADABLE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.PickleError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What libraries raise over bytes that they cannot read, each in its own way. Only around calls into such a library."""


def unreadable(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """`UNREADABLE` and a library's own exceptions."""
    return (*UNREADABLE, *more)


class BadJson(ValueError):
    """Not JSON, or JSON beyond the bounds. The message follows the file's name: `is nested deeper than 64 levels`."""


def parse_json(data: bytes | bytearray | memoryview | str, *, limit: int = MAX_JSON) -> Any:
    """The value of JSON. BadJson for one that is none, or longer, deeper or of more values than the bounds."""
    if len(data) > limit:
        raise BadJson(f"is longer than the {limit:,} bytes that are read of it ({len(data):,})")
    text = bytes(data) if isinstance(data, memoryview) else data
    if isinstance(text, str):
        values = sum(text.count(mark) for mark in ",[{")
    else:
        values = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_VALUES:  # in strings they count, too: the bound is far away from what is usual
        raise BadJson(f"holds more than the {MAX_VALUES:,} values that are read of it")
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadJson(f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadJson(f"is not JSON ({shortened(error)})") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item) if isinstance(child, dict | list)]
        if not level:
            return value
    raise BadJson(f"is nested deeper than {MAX_DEPTH} levels")


def _children(item: Any) -> Any:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def read_json(path: Path, *, limit: int = MAX_JSON) -> Any:
    """The value of a JSON file. BadJson as `parse_json`, for a long file before any of it is read; OSError."""
    return parse_json(read_bounded(path, limit), limit=limit)


def read_bounded(path: Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. BadJson for a longer one, or for what is no file; OSError."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for
        raise BadJson("is no regular file")
    if info.st_size > limit:
        raise BadJson(f"is longer than the {limit:,} bytes that are read of it ({info.st_size:,})")
    with path.open("rb") as file:
        return file.read(info.st_size)  # so many, and not the limit, for which room would be made


def json_lines(path: Path, *, limit: int = MAX_LINE) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each line of a JSON Lines file but empty ones. BadJson names the line; OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadJson("is no regular file")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            try:
                if len(line) > limit:
                    raise BadJson(f"is longer than the {limit:,} bytes that are read of it")
                if line.strip():
                    yield number, parse_json(line, limit=limit)
            except BadJson as error:
                raise BadJson(f"line {number}, {error}") from None


def inside(folder: Path, name: str) -> Path:
    """`folder / name`. ValueError where that lies outside. Links are not followed: a Hub cache consists of them."""
    if len(name) > MAX_PATH or not name.isprintable():
        raise ValueError(f"the path {shortened(repr(name))} is too long, or no text")
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"the path {name!r} lies outside of {folder}")
    return path


def shortened(value: object, most: int = 200) -> str:
    """The first line of what is said, cut to a length that fits into a sentence."""
    text = str(value).strip() or type(value).__name__
    # half a character, as JSON may hold one, can be written to no terminal
    line = text.splitlines()[0].encode(errors="backslashreplace").decode()
    return line if len(line) <= most else line[: most - 3] + "..."
