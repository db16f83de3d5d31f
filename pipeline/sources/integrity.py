"""Is a video file whole? Its container says how long it should be.

A decoder stops quietly at the end of a truncated file, and a reader that needs only the first frames never gets there.
The sizes in the container's outermost structure tell at the cost of a few small reads.
"""

from pathlib import Path
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MP4_BOXES = frozenset(b"ftyp moov mdat free skip wide pnot moof mfra styp sidx ssix prft emsg uuid meta udta".split())
_MAX_BOXES = 100_000


def missing_bytes(path: Path) -> int:
    """How many bytes the container of `path` promises beyond the end of the file; 0 for a whole or unknown file.

    Knows Matroska and WebM (size of the segment, RFC 9559), MP4 and MOV (top-level boxes, ISO 14496-12) and AVI (RIFF
    chunks). A live WebM, which has no sizes, counts as whole. OSError as from reading a file.
    """
    actual = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(_EBML):
            promised = _matroska_end(file, head)
        elif head[4:8] in _MP4_BOXES:
            promised = _mp4_end(file, actual)
        elif head.startswith(b"RIFF"):
            promised = _riff_end(file, actual)
        else:
            promised = 0
    return max(0, promised - actual)


def _vint(data: bytes) -> tuple[int, int] | None:
    """Value and length of the EBML variable-size integer that `data` starts with; None if it is unknown or broken."""
    if not data or data[0] == 0:
        return None
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return None
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else (value, length)


def _matroska_end(file: BinaryIO, head: bytes) -> int:
    header = _vint(head[4:])
    if header is None:
        return 0
    start = 4 + sum(header)
    file.seek(start)
    data = file.read(12)
    size = _vint(data[4:]) if data.startswith(_SEGMENT) else None
    return 0 if size is None else start + 4 + sum(size)


def _mp4_end(file: BinaryIO, actual: int) -> int:
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(16)
        if len(header) < 8 or header[4:8] not in _MP4_BOXES:  # the end, or bytes after it that are no box
            return position
        size, minimum = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, minimum = int.from_bytes(header[8:16], "big"), 16
        if size < minimum:  # 0: the box goes on to the end of the file
            return position
        position += size
        if position >= actual:
            break
    return position


def _riff_end(file: BinaryIO, actual: int) -> int:
    position = 0
    while position + 8 <= actual:
        file.seek(position)
        header = file.read(8)
        size = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or size == 0:
            break
        position += 8 + size
    return position
