"""Which machine a build runs on: chosen and described without torch, opened with torch only to compute.

Not by accelerate: a build uses one device in one process, and nothing is sharded, so that its bits depend on
the class of machine alone. `Accelerator().device` would choose the same one, but imports torch, which
planning must not; what is left to place is a `to(device)`. Mixed precision is torch's own autocast.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from editspec.errors import InputError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cpu", "cuda", "mps"]
KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda", "mps")

# Sustained fp32 rates (no TF32: it is off while compiling) in FLOP per second, rounded: what plans are
# estimated with, not a promise.
CPU_CORE_FLOPS = 3.5e10
GPU_FLOPS = 8.0e12
GPU_FLOPS_BY_NAME = {
    "H200": 3.5e13,
    "H100": 3.5e13,
    "A100": 1.4e13,
    "L40": 4.0e13,
    "4090": 4.0e13,
    "T4": 4.0e12,
}
MPS_FLOPS = 4.0e12


@dataclass(frozen=True)
class Device:
    """A machine class. `name` is what influences the bits of a result; memory and cores do not."""

    kind: DeviceKind
    name: str
    memory_bytes: int
    cores: int

    @property
    def device_class(self) -> str:
        """Part of every cache key: builds on one class of machine give the same bytes."""
        return f"{self.kind} {self.name}"

    @property
    def flops(self) -> float:
        """FLOP per second to plan with."""
        if self.kind == "cpu":
            return CPU_CORE_FLOPS * self.cores
        if self.kind == "mps":
            return MPS_FLOPS
        return next((rate for part, rate in GPU_FLOPS_BY_NAME.items() if part in self.name), GPU_FLOPS)

    def open(self) -> torch.device:
        """The torch device; `InputError` where this torch cannot use it."""
        import torch

        usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not usable[self.kind]:
            raise InputError(
                "--device", f"torch cannot use '{self.kind}' on this machine", "compile with --device cpu"
            )
        return torch.device(self.kind)

    def as_dict(self) -> dict[str, Any]:
        """JSON facts for people; not part of any digest."""
        return {"kind": self.kind, "name": self.name, "memory_bytes": self.memory_bytes, "cores": self.cores}


def choose(requested: str = "auto") -> Device:
    """The requested device, or with "auto" the best of cuda, mps, cpu. Does not import torch."""
    if requested not in ("auto", *KINDS):
        raise InputError("--device", f"no device '{requested}'", f"choose one of auto, {', '.join(KINDS)}")
    probes: dict[str, Callable[[], Device | None]] = {"cuda": _cuda, "mps": _mps, "cpu": _cpu}
    for kind in ("cuda", "mps", "cpu") if requested == "auto" else (requested,):
        device = probes[kind]()
        if device is not None:
            return device
    raise InputError(
        "--device",
        f"there is no usable '{requested}' device on this machine",
        "leave --device out, or use cpu",
    )


def _cpu() -> Device:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device("cpu", f"{platform.machine()} {_vector_units()}".strip(), _memory(), cores)


def _mps() -> Device | None:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    return Device("mps", f"macOS {platform.mac_ver()[0].partition('.')[0]}", _memory(), os.cpu_count() or 1)


@cache
def _cuda() -> Device | None:
    """The first CUDA device, asked from the driver: loading torch for that would take seconds."""
    if not _torch_has_cuda():
        return None
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    handle, count, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    calls: tuple[tuple[str, tuple[object, ...]], ...] = (
        ("cuInit", (0,)),
        ("cuDeviceGetCount", (ctypes.byref(count),)),
        ("cuDeviceGet", (ctypes.byref(handle), 0)),
        ("cuDeviceGetName", (name, len(name), handle)),
        ("cuDeviceTotalMem_v2", (ctypes.byref(memory), handle)),
    )
    if any(getattr(driver, call)(*arguments) != 0 for call, arguments in calls):
        return None
    return Device("cuda", name.value.decode("utf-8", "replace"), memory.value, os.cpu_count() or 1)


def _torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA, read from its version file."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    try:
        text = (Path(found.origin).parent / "version.py").read_text("utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None


def _vector_units() -> str:
    """The widest vector instructions: convolutions and sums give other bits on other widths."""
    try:
        flags = set(
            re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)[0].split()
        )
    except (OSError, IndexError):
        return ""
    return next((unit for unit, flag in (("avx512", "avx512f"), ("avx2", "avx2")) if flag in flags), "")


def _memory() -> int:
    """Bytes this process may use: the container's limit where there is one, else the machine's memory."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=0)
