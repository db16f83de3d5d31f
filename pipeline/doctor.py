"""What this machine has for `cla`, line by line: fine, or with its remedy."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "note", "bad"]

REQUIRED = ("torch", "numpy", "zarr", "webdataset", "pyarrow", "fsspec", "av", "mujoco", "gymnasium", "fpsample")
OPTIONAL = {
    "spconv": ("cuda", "sparse convolution on CUDA; the built-in one computes the same"),
    "torch_scatter": ("cuda", "pooling on CUDA; the built-in one computes the same"),
    "gym_aloha": ("sim", "the ALOHA simulator"),
    "libero": ("sim", "the LIBERO simulator"),
    "ray": ("ray", "extraction over many machines"),
    "rerun": ("viz", "`cla inspect-shards --rerun`"),
    "s3fs": ("s3", "stores on s3://"),
}
WEIGHTS = (
    ("facebook/VGGT-1B", ("model.safetensors", "model.pt"), "non-commercial"),
    ("facebook/VGGT-1B-Commercial", ("vggt_1B_commercial.pt", "model.safetensors"), "commercial use, gated"),
    ("Pointcept/Concerto", ("concerto_base.pth",), "CC-BY-NC 4.0"),
    ("Pointcept/Concerto", ("concerto_small.pth",), "CC-BY-NC 4.0"),
    ("Pointcept/Concerto", ("concerto_large.pth",), "CC-BY-NC 4.0"),
)
LEAST_DISK_GB = 20
LEAST_MEMORY_GB = 12


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line of the report; `remedy` is empty where all is well."""

    state: State
    what: str
    found: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return asdict(self)


def examine(folder: Path) -> list[Finding]:
    """Look at versions, device, optional packages, weights, and the disk below `folder`."""
    return [_python(), *_packages(), _device(), *_optional(), *_codecs(), *_weights(), _memory(), _disk(folder), _use()]


def _python() -> Finding:
    return Finding(state="ok", what="python", found=f"{platform.python_version()} on {platform.platform(terse=True)}")


def _packages() -> list[Finding]:
    findings = []
    for name in ("concerto-laq", *REQUIRED):
        try:
            findings.append(Finding(state="ok", what=name, found=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(state="bad", what=name, found="missing", remedy="make install"))
    return findings


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding(state="ok", what="device", found=f"CUDA {torch.version.cuda}: {names}")
    remedy = ""
    if shutil.which("nvidia-smi"):
        remedy = "there is an NVIDIA driver but PyTorch sees no GPU: install a CUDA build of torch"
    return Finding(
        state="note" if remedy else "ok",
        what="device",
        found=f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        remedy=remedy,
    )


def _optional() -> list[Finding]:
    findings = []
    for module, (extra, use) in OPTIONAL.items():
        if importlib.util.find_spec(module) is not None:
            findings.append(Finding(state="ok", what=module, found=f"found: {use}"))
        else:
            remedy = f"for {use}: pip install 'concerto-laq[{extra}]'"
            findings.append(Finding(state="note", what=module, found="not installed", remedy=remedy))
    return findings


def _codecs() -> list[Finding]:
    import av

    missing = [name for name in ("vp9", "h264", "hevc", "av1") if name not in av.codecs_available]
    if missing:
        remedy = "pip install --force-reinstall av: its wheels bring FFmpeg with these decoders"
        return [Finding(state="bad", what="decoders", found=f"without {', '.join(missing)}", remedy=remedy)]
    return [Finding(state="ok", what="decoders", found="vp9, h264, hevc, av1")]


def _weights() -> list[Finding]:
    from huggingface_hub import try_to_load_from_cache

    findings = []
    for repository, names, licence in WEIGHTS:
        what = repository if len(names) > 1 else f"{repository}/{names[0]}"
        paths = [path for name in names if isinstance(path := try_to_load_from_cache(repository, name), str)]
        if paths:
            findings.append(Finding(state="ok", what=what, found=f"{paths[0]} ({licence})"))
        else:
            remedy = f"hf download {repository} {names[0]}  (licence: {licence}); or give a file: *.weights=/path"
            findings.append(Finding(state="note", what=what, found="not in the cache", remedy=remedy))
    return findings


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    remedy = "" if total >= LEAST_MEMORY_GB else f"recipe `full` needs {LEAST_MEMORY_GB} GB on a CPU; use tiny or small"
    return Finding(state="note" if remedy else "ok", what="memory", found=f"{total:.0f} GB", remedy=remedy)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    remedy = "" if free >= LEAST_DISK_GB else "VGGT-1B alone is 5 GB, a store 0.2 MB a frame; choose another --out"
    return Finding(
        state="note" if remedy else "ok", what="disk", found=f"{free:.0f} GB free in {folder}", remedy=remedy
    )


def _use() -> Finding:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Finding(state="ok", what="would use", found=f"--device {device}, built-in sparse convolution, zarr shards")
