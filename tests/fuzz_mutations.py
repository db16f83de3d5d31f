"""Changes to files, by their bytes and by their structure, as hypothesis draws them."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

Draw = Callable[[st.SearchStrategy[Any]], Any]

NUMBERS = (0, 1, -1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 10**12, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800", "A" * 20_000, [], {}, [[]],
    {"a": 1}, [1, 2, 3], 0.5, -1.5, 1e30, 1e308, float("nan"), float("inf"), 10**400, -(10**30), *NUMBERS,
    "{episode_index.__class__}", "{episode_index:999999999}", "{video_key!r}", "O", "float32", "int64", "uint8", "big",
)  # fmt: skip
NAMES = ("../out", "/tmp/out", "a/../../out", "zarr.json", "time/zarr.json", "é", "x" * 3000, "a\nb", "..", "c:/out")


def below(draw: Draw, count: int) -> int:
    return int(draw(st.integers(0, max(0, count - 1))))


def one_of(draw: Draw, choices: Any) -> Any:
    return choices[below(draw, len(choices))]


def place(draw: Draw, size: int) -> int:
    """Where in a file: anywhere, or near one of its ends, where formats keep what they claim."""
    where = below(draw, 3)
    return (
        below(draw, size)
        if where == 0
        else below(draw, min(size, 2048))
        if where == 1
        else size - 1 - below(draw, min(size, 1024))
    )


def change_bytes(draw: Draw, data: bytes) -> bytes:
    if not data:
        return b"\x00"
    out, at, kind = bytearray(data), place(draw, len(data)), below(draw, 8)
    length = 1 + below(draw, 64)
    if kind == 0:
        out[at] ^= 1 << below(draw, 8)
    elif kind == 1:
        out[at] = one_of(draw, (0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    elif kind == 2:
        form = one_of(draw, ("<Q", ">Q", "<I", ">I", "<H", ">H"))
        packed = struct.pack(form, one_of(draw, NUMBERS) % 256 ** struct.calcsize(form))
        out[at : at + len(packed)] = packed
    elif kind == 3:
        out[at:at] = draw(st.binary(min_size=1, max_size=64))
    elif kind == 4:
        del out[at : at + length]
    elif kind == 5:
        del out[at:]
    elif kind == 6:
        out[at:at] = out[at : at + length] * (1 + below(draw, 3))
    else:
        out[at : at + length] = bytes(min(length, len(out) - at))
    return bytes(out)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        if len(found) > 4000:
            break
        found += _places(child, (*path, key))
    return found


def change_json(draw: Draw, value: Any) -> Any:
    """One value replaced, removed, or put there again."""
    places = _places(value)
    if not places or below(draw, 12) == 0:
        return one_of(draw, VALUES)
    *path, last = one_of(draw, places)
    holder = value
    for part in path:
        holder = holder[part]
    kind = below(draw, 6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, list):
        holder += [holder[last]] * (1 + below(draw, 3))
    elif kind == 1:
        holder[one_of(draw, NAMES)] = holder[last]
    elif kind == 2:
        *other, final = one_of(draw, places)
        source = value
        for part in other:
            source = source[part] if not isinstance(source, dict | list) or _has(source, part) else source
        holder[last] = json.loads(json.dumps(source[final])) if _has(source, final) else None
    else:
        holder[last] = one_of(draw, VALUES)
    return value


def _has(holder: Any, key: Any) -> bool:
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and isinstance(key, int) and key < len(holder)


def _json_bytes(draw: Draw, data: bytes) -> bytes:
    if below(draw, 25) == 0:
        return one_of(
            draw, (b"[" * 100_000, b'{"a":' * 5_000, b"9" * 6_000, b"\xff\xfe[\x00]\x00", b"[" + b"{}," * 50_000)
        )
    try:
        value = json.loads(data)
    except ValueError:
        return change_bytes(draw, data)
    return json.dumps(change_json(draw, value)).encode()


def _json_lines(draw: Draw, data: bytes) -> bytes:
    lines = data.splitlines() or [b"{}"]
    at = below(draw, len(lines))
    lines[at] = _json_bytes(draw, lines[at])
    return b"\n".join(lines) + b"\n"


def _no_text(rows: int) -> tuple[pa.Buffer, pa.Buffer]:
    """Offsets and bytes of texts that are no UTF-8."""
    return pa.py_buffer(np.arange(0, 2 * rows + 2, 2, dtype=np.int32)), pa.py_buffer(b"\xff\xfe" * rows)


def _parquet(draw: Draw, data: bytes) -> bytes:
    table = parquet.read_table(io.BytesIO(data))
    rows, name = table.num_rows, one_of(draw, table.column_names)
    kind = below(draw, 8)
    others: list[Any] = [
        lambda: pa.array([one_of(draw, ("", "../x", "é", "x" * 5000))] * rows, pa.string()),
        lambda: pa.array([one_of(draw, (0, -1, 2**31, 2**63 - 1, -(2**63)))] * rows, pa.int64()),
        lambda: pa.array([one_of(draw, (np.nan, np.inf, -1e30, 1e300))] * rows, pa.float64()),
        lambda: pa.nulls(rows, table.schema.field(name).type),
        lambda: pa.array([[1.0] * below(draw, 9) for _ in range(rows)], pa.list_(pa.float32())),
        lambda: pa.StringArray.from_buffers(rows, *_no_text(rows)),
    ]  # fmt: skip
    if kind < len(others):
        table = table.set_column(table.column_names.index(name), name, others[kind]())
    elif kind == 6:
        table = table.drop_columns([name])
    else:
        meta = {key: _json_bytes(draw, value) for key, value in (table.schema.metadata or {}).items()}
        table = pa.concat_tables([table, table.slice(below(draw, rows))]).replace_schema_metadata(meta)
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def _hdf5(draw: Draw, data: bytes) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = one_of(draw, sorted(names))
        item, kind = file[name], below(draw, 12)
        if kind == 0:
            attributes = sorted(item.attrs) or ["problem_info"]
            item.attrs[one_of(draw, attributes)] = one_of(
                draw, ("", "x", 1e30, np.arange(3), "[" * 5000, '{"language_instruction": 7}', b"\xff", h5py.Empty("f"))
            )
            kind = -1
        values = item[()] if isinstance(item, h5py.Dataset) else None
        if kind > 0:
            del file[name]
        if kind == 2:
            file[name] = h5py.ExternalLink("other.hdf5", one_of(draw, ("/", name)))
        elif kind == 3:
            file[name] = h5py.SoftLink(one_of(draw, ("/", name, "/nothing")))
        elif kind == 4:
            shape = one_of(draw, ((10**12,), (10**6, 10**6), (10**9, 7), (3, 10**5, 10**5, 3), (0, 7), (2, 2)))
            file.create_dataset(name, shape=shape, dtype=one_of(draw, ("f4", "u1", "f8", "i8")), chunks=True)
        elif kind == 5:
            file.create_dataset(name, data=np.array(["a", "bc"], dtype=object), dtype=h5py.string_dtype())
        elif kind == 6:
            file.create_dataset(name, data=np.array([file.ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
        elif kind == 7:
            file.create_group(name)
        elif kind == 8:
            layout = h5py.VirtualLayout(shape=(9, 7), dtype="f4")
            layout[:] = h5py.VirtualSource("other.hdf5", "x", shape=(9, 7))
            file.create_virtual_dataset(name, layout)
        elif kind == 9 and values is not None and values.dtype.kind == "f":
            values.reshape(-1)[below(draw, values.size)] = one_of(draw, (np.nan, np.inf, -np.inf, 1e30, -1e38))
            file[name] = values
        elif kind == 10 and values is not None and values.ndim:
            file.create_dataset(name, data=values[: below(draw, len(values))], compression="gzip")
        elif kind == 11 and values is not None and values.ndim:
            file[name] = values.astype(one_of(draw, ("f2", "i1", "u8", "bool", "c8"))).reshape(-1)
    return buffer.getvalue()


def _zip(draw: Draw, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = below(draw, len(members))
    name, content = members[at]
    kind, method = below(draw, 6), zipfile.ZIP_STORED
    if kind == 0:
        members[at] = (one_of(draw, NAMES), content)
    elif kind == 1:
        del members[at]
    elif kind == 2:
        members.append(members[at])
    elif kind == 3 and below(draw, 4) == 0:
        method = zipfile.ZIP_DEFLATED
    else:
        changed = _json_bytes(draw, content) if name.endswith(".json") else _npy(draw, content)
        members[at] = (name, changed)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, method)
    return buffer.getvalue()


def _npy(draw: Draw, data: bytes) -> bytes:
    if data[:6] != b"\x93NUMPY" or below(draw, 2):
        return change_bytes(draw, data)
    start = 10 + int.from_bytes(data[8:10], "little")
    shape = one_of(
        draw, ("()", "(0,)", "(1,)", "(4294967296, 4294967296)", "(9223372036854775808,)", "(1000000000000,)")
    )
    kind = one_of(draw, ("<f4", "|O", "<f9", "<i8", "|b1", "<u2", "<U9"))
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return data[:8] + struct.pack("<H", len(head)) + head + data[start:]


def _tar(draw: Draw, data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(entry, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
    at = below(draw, len(members))
    entry, content = members[at]
    kind = below(draw, 7)
    if kind == 0:
        entry.name = one_of(draw, NAMES)
    elif kind == 1:
        entry.type = one_of(
            draw, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        )
        entry.linkname = "../../etc/passwd"
    elif kind == 2:
        del members[at]
    elif kind == 3:
        members.append(members[at])
    elif entry.name.endswith(".npz"):
        members[at] = (entry, _zip(draw, content))
    else:
        members[at] = (entry, _npy(draw, content))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in members:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _safetensors(draw: Draw, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(change_json(draw, json.loads(data[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


STRUCTURED: dict[str, Callable[[Draw, bytes], bytes]] = {
    ".json": _json_bytes,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".hdf5": _hdf5,
    ".zip": _zip,
    ".tar": _tar,
    ".safetensors": _safetensors,
}


def change_file(draw: Draw, path: Path) -> str:
    """Change one file; what was done."""
    data, suffix = path.read_bytes(), path.suffix
    path.unlink()
    if below(draw, 30) == 0:
        return f"{path.name} removed"
    how = STRUCTURED.get(suffix)
    if how is not None and below(draw, 5) > 1:
        try:
            path.write_bytes(how(draw, data))
            return f"{path.name} by its structure"
        except Exception as error:  # noqa: BLE001  # it may have been changed before, so that it has no structure
            path.write_bytes(change_bytes(draw, data))
            return f"{path.name} by its bytes, for {type(error).__name__}"
    path.write_bytes(change_bytes(draw, data))
    return f"{path.name} by its bytes"
