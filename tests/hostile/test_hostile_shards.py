"""Shards whose archives, shapes, offsets and compressed frames are not what they claim."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import change_json, little_memory, read_shard, rewrite_tar, rewrite_zip, sparse, zip_member
from store_factory import small_store

from pipeline.store.errors import ShardError, StoreError
from pipeline.store.files import MappedFile
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store
from pipeline.store.shard import open_shard
from pipeline.store.shard_cache import ShardCache
from pipeline.store.verify import verify


@pytest.fixture
def zarr(tmp_path: Path) -> Path:
    small_store(tmp_path / "s", "zarr")
    return tmp_path / "s/shards/000000.zarr.zip"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    small_store(tmp_path / "s", "webdataset")
    return tmp_path / "s/shards/000000.tar"


def refused(path: Path, sentence: str) -> None:
    """Reading it gives one sentence, takes little, and leaves the folder as it was."""
    before = sorted(path.parents[2].rglob("*"))
    store_format = "zarr" if path.suffix == ".zip" else "webdataset"
    with little_memory(), pytest.raises(ShardError, match=sentence) as caught:
        read_shard(path, store_format)
    assert "000000" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert sorted(path.parents[2].rglob("*")) == before
    assert any(damage.shard == "000000" for damage in verify(StoreLayout.open(str(path.parents[1]))))


OUTSIDE = ("../../out", "/tmp/out", "a/../../../out", "..", "c:/out", "a\\..\\out", "a\nb", "x" * 2000)


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_of_a_zip_that_lead_elsewhere(zarr: Path, name: str) -> None:
    rewrite_zip(zarr, more={name: b"x"})
    refused(zarr, "has a member called .* (which lies outside of the shard|which is no name)")


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_of_a_tar_that_lead_elsewhere(tar: Path, name: str) -> None:
    rewrite_tar(tar, more={name: b"x"})
    refused(tar, "has a member called .* (which lies outside of the shard|which is no name)")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_members_of_a_tar_that_are_no_files(tar: Path, kind: bytes) -> None:
    def change(entry: tarfile.TarInfo, data: bytes) -> bytes:
        if entry.name.endswith(".time.npy"):
            entry.type, entry.linkname = kind, "../../../etc/passwd"
        return data

    rewrite_tar(tar, change)
    refused(tar, "is a link, a device or a folder, expected plain files")


def test_a_member_of_a_zip_that_is_there_twice(zarr: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        rewrite_zip(zarr, again="time/zarr.json")
    refused(zarr, "entry time/zarr.json is there twice")


def test_a_member_of_a_tar_that_is_there_twice(tar: Path) -> None:
    rewrite_tar(tar, more={"clips/00.json": b"{}"})
    with pytest.raises(ShardError, match=r"member 'clips/00\.json' is there twice"):
        read_shard(tar, "webdataset")


def test_a_compressed_zip(zarr: Path) -> None:
    rewrite_zip(zarr, method=zipfile.ZIP_DEFLATED)
    refused(zarr, "is compressed or encrypted, expected stored")


def test_a_zip_with_a_directory_of_a_gigabyte(zarr: Path) -> None:
    data = bytearray(zarr.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    size = 1 << 30
    with zarr.open("wb") as file:  # the directory fills all of a sparse file but its end
        file.truncate(size)
        file.seek(size)
        file.write(data[at:at + 12] + struct.pack("<II", size, 0) + data[at + 20:])  # fmt: skip
    refused(zarr, "its directory claims 1,073,741,824 bytes, expected at most")


def pax(size: str) -> bytes:
    """A tar whose one member has a size in a pax header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a.time.npy")
        entry.pax_headers = {"size": size}
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize("size", ["-512", "-99999999999", "9" * 15, "9" * 4000, "1e9", "nan"])
def test_a_tar_with_sizes_that_no_file_has(tar: Path, size: str) -> None:
    tar.write_bytes(pax(size))
    with little_memory(), pytest.raises(ShardError, match="Shard 000000"):
        read_shard(tar, "webdataset")


def test_a_tar_with_a_name_of_a_gigabyte(tar: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    sparse(tar, 2 << 30, header.tobuf(tarfile.GNU_FORMAT))
    with little_memory(), pytest.raises(ShardError, match="a header claims 1,073,741,824 bytes"):
        read_shard(tar, "webdataset")


def test_a_tar_of_headers_of_headers(tar: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4
    tar.write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"abc\x00".ljust(512, b"\x00")) * 5_000)
    with little_memory(), pytest.raises(ShardError, match="is no whole tar file"):
        read_shard(tar, "webdataset")


def of_meta(name: str, **changed: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        meta = {**json.loads(zip_member(path, f"{name}/zarr.json")), **changed}
        rewrite_zip(path, {f"{name}/zarr.json": json.dumps(meta).encode()})

    return change


def of_data(name: str, data: bytes) -> Callable[[Path], None]:
    entry = f"{name}/c/0"
    return lambda path: rewrite_zip(path, {entry: data})


def offsets(*values: int, dtype: str = "<i8") -> bytes:
    return np.array(values).astype(dtype).tobytes()


PICKLE = [{"name": "pickle"}]

CLAIMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a metadata bomb": (lambda path: rewrite_zip(path, {"time/zarr.json": b"[" * 100_000}), "nested deeper than 64"),
    "metadata of 8 MB": (lambda path: rewrite_zip(path, {"time/zarr.json": b" " * (8 << 20)}), "at most 1,048"),
    "an enormous shape": (of_meta("tokens/feat", shape=[10**12, 10**12]), "claims the shape|expected sides of 0 to"),
    "a product of 2^64": (of_meta("tokens/feat", shape=[2**32, 2**32]), "claims the shape|needs another number"),
    "a side of 2^70": (of_meta("tokens/feat", shape=[2**70, 16]), "expected sides of 0 to"),
    "a negative side": (of_meta("time", shape=[-3]), "expected sides of 0 to"),
    "no sides": (of_meta("time", shape=[]), "has the shape"),
    "sides that are text": (of_meta("time", shape=["x"]), "its metadata is damaged"),
    "sides that are infinite": (of_meta("time", shape=[float("inf")]), "its metadata is damaged"),
    "frames of 10^11 points": (of_meta("points/pixel", shape=[3, 10**11]), "bytes a frame, expected"),
    "other fixed sides": (of_meta("camera/intrinsic", shape=[3, 9, 1]), "expected dimensions"),
    "Python's objects": (of_meta("time", data_type="object"), "expected plain numbers"),
    "records": (of_meta("time", data_type={"name": "struct"}), "expected plain numbers"),
    "texts": (of_meta("time", data_type="fixed_length_utf32"), "expected plain numbers"),
    "an unknown codec": (of_meta("time", codecs=[{"name": "gzip"}]), r"is encoded with \['gzip'\]"),
    "codecs that are none": (of_meta("time", codecs=[7]), "its metadata is damaged"),
    "frames by an unknown codec": (
        of_meta("points/pixel", codecs=[{"name": "sharding_indexed", "configuration": {"codecs": PICKLE}}]),
        r"frames are encoded with \['pickle'\]",
    ),
    "big endian": (of_meta("time", codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]), "most significant"),
    "clips that fall": (of_data("clips/offset", offsets(0, 5, 3)), "offsets fall at entry 2"),
    "clips below 0": (of_data("clips/offset", offsets(0, -1, 3)), "offsets fall at entry 1"),
    "clips from 1": (of_data("clips/offset", offsets(1, 1, 3)), "offsets start at"),
    "clips past the end": (of_data("clips/offset", offsets(0, 1, 2**62)), "offsets end at 4611686018427387904"),
    "clips that wrap around": (of_data("clips/offset", offsets(0, 2**63 - 1, -(2**63))), "offsets fall at entry 2"),
    "tokens past the end": (of_data("tokens/offset", offsets(0, 1, 2, 10**12)), "offsets end at 1000000000000"),
    "an empty member": (of_data("tokens/offset", b""), "has 0 bytes of data"),
}  # fmt: skip


@pytest.mark.parametrize("what", CLAIMS)
def test_what_a_zarr_shard_claims(zarr: Path, what: str) -> None:
    change, sentence = CLAIMS[what]
    change(zarr)
    refused(zarr, sentence)


def test_offsets_without_a_sign(zarr: Path) -> None:
    """Their differences would wrap around, and none be below 0."""
    meta = json.loads(zip_member(zarr, "clips/offset/zarr.json")) | {"data_type": "uint64"}
    changed = {"clips/offset/zarr.json": json.dumps(meta).encode(), "clips/offset/c/0": offsets(0, 5, 3, dtype="<u8")}
    rewrite_zip(zarr, changed)
    refused(zarr, "has dtype uint64, expected (<i8|int64)")


@pytest.mark.parametrize(
    ("start", "form", "value"),
    [
        (4, "<I", 2**31 - 1),
        (4, "<I", 0),
        (8, "<I", 2**31 - 1),
        (8, "<I", 0),
        (12, "<I", 2**32 - 1),
        (0, "<I", 2**32 - 1),
    ],
)
def test_blosc_headers(zarr: Path, start: int, form: str, value: int) -> None:
    """Of the first frame: values, a block, the chunk, versions and flags."""
    data = bytearray(zip_member(zarr, "points/depth/c/0/0"))
    struct.pack_into(form, data, start, value)
    rewrite_zip(zarr, {"points/depth/c/0/0": bytes(data)})
    shard = open_shard(MappedFile(str(zarr)), "000000", "zarr")
    with little_memory():
        try:
            found = shard.clip_array("points/depth", 0)
        except ShardError as error:
            assert "points/depth" in str(error) and "frame 0" in str(error)
        else:  # blosc needs no size of blocks where it has stored values as they are
            assert found.shape == (1, 96) and start == 8


def test_frames_outside_of_the_data(zarr: Path) -> None:
    data = bytearray(zip_member(zarr, "points/depth/c/0/0"))
    frames = 3
    at = len(data) - 4 - 16 * frames
    for begin, size in ((2**63, 16), (2**64 - 2, 2**63), (0, 2**40)):
        struct.pack_into("<QQ", data, at, begin, size)
        rewrite_zip(zarr, {"points/depth/c/0/0": bytes(data)})
        refused(zarr, "frame 0 lies outside of the array's data")


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (npy("|O", "(1,)", b"cos\nsystem\n(S'touch out'\ntR."), "header is damaged"),
        (npy("<f9", "(1,)", bytes(9)), "header is damaged"),
        (npy("<f8", "(4294967296, 4294967296)"), "claims the shape|has the shape"),
        (npy("<f8", "(1000000000000,)"), "its shape .* needs 8000000000000"),
        (npy("<f8", f"({2**70},)"), "expected sides of 0 to"),
        (npy("<f8", "()", bytes(8)), "has the shape"),
        (npy("<i8", "(1,)", bytes(8)), "has dtype int64, expected float64"),
        (b"\x80\x04cos\nsystem\n(S'touch out'\ntR.", "header is damaged"),
    ],
)
def test_what_a_tar_shard_claims(tar: Path, content: bytes, sentence: str) -> None:
    rewrite_tar(tar, lambda entry, data: content if entry.name == "clips/00.time.npy" else data)
    refused(tar, sentence)
    assert not list(tar.parents[2].rglob("out")) and not Path("out").exists()


def packed(member: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("pixel", "rgb", "depth", "conf"):
            archive.writestr(f"{name}.npy", member, method)
    return buffer.getvalue()


def claims_more(data: bytes) -> bytes:
    """An .npz whose members claim 3 GB each."""
    out = bytearray(data)
    at = out.find(b"PK\x01\x02")
    while at >= 0:
        struct.pack_into("<I", out, at + 24, 3 << 30)
        at = out.find(b"PK\x01\x02", at + 4)
    return bytes(out)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (claims_more(packed(npy("<u2", "(1, 96)", bytes(192)))), "claims 3,221,225,472 bytes for 1 frames"),
        (packed(npy("<u2", "(1, 96)", bytes(192)), zipfile.ZIP_LZMA), "method 14, expected deflate"),
        (packed(npy("|O", "(1,)", b"cos\nsystem\n(S'touch out'\ntR.")), "expected numbers in C order"),
        (packed(npy("<u2", "(1000000, 1000000)", bytes(8))), "does not decompress"),
        (packed(npy("<u2", "(3, 32)", bytes(192))), "is uint16 .* for 1 frames"),
        (b"PK\x05\x06" + bytes(18), "does not decompress"),
    ],
)
def test_packed_points(tar: Path, content: bytes, sentence: str) -> None:
    rewrite_tar(tar, lambda entry, data: content if entry.name == "clips/00.points.npz" else data)
    refused(tar, sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s["file"].update(sha256="../../../../tmp/out".ljust(64, "x")), "file.sha256 is"),
        (lambda s: s["file"].update(name="../../out"), "file.name is"),
        (lambda s: s["file"].update(bytes=-1), "file.bytes is"),
        (lambda s: s["rows"][0].update(time=[]), "frames and 0 times"),
        (lambda s: s["rows"][0].update(frames=10**12), "frames and 1 times"),
        (lambda s: s["rows"][0].update(digest="zz"), "has the digest 'zz'"),
        (lambda s: s["rows"][0].update(key="k" * 5000), "has the key"),
        (lambda s: s["arrays"]["time"].update(shape=[-1]), "has numbers that no array has"),
        (lambda s: s.update(shard="../../out"), "its sidecar is of shard"),
    ],
)
def test_what_a_sidecar_says(tmp_path: Path, change: Callable[[Any], Any], sentence: str) -> None:
    layout = small_store(tmp_path / "s")
    change_json(tmp_path / "s/shards/000000.json", change)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(ShardError, match=sentence):
        list(layout.sidecars())
    (tmp_path / "cache").mkdir()
    with pytest.raises(ShardError, match=sentence):
        ShardCache(tmp_path / "cache", 1 << 30).open(layout, "000000")
    assert {str(path) for path in tmp_path.parent.rglob("*")} - {str(path) for path in before} <= {
        str(tmp_path / "cache"), *(str(path) for path in (tmp_path / "cache").iterdir())
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m["sizes"].pop("W"), "sizes lacks W"),
        (lambda m: m["sizes"].update(C=10**12), "sizes.C is 1000000000000"),
        (lambda m: m["sizes"].update(W=0), "sizes.W is 0"),
        (lambda m: m["sizes"].update(P=-1), "sizes.P is -1"),
        (lambda m: m.update(schema_version=10**400), "has schema version 1000"),
    ],
)
def test_what_a_manifest_says(tmp_path: Path, change: Callable[[Any], Any], sentence: str) -> None:
    small_store(tmp_path / "s")
    change_json(tmp_path / "s/manifest.json", lambda manifest: change(manifest) and None)
    with pytest.raises(StoreError, match=sentence) as caught:
        Store(str(tmp_path / "s"))
    assert "manifest.json" in str(caught.value) and len(str(caught.value)) < 400
