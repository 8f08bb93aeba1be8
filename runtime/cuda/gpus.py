"""Lists the NVIDIA GPUs of this machine, through the driver's library alone and without a context: any command may."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76
_REASONS = {
    3: "the driver is not initialized",
    46: "the GPU is not available now",
    _NO_DEVICE: "the driver sees no GPU",
    101: "no such GPU",
    800: "this process may not use the GPU",
    802: "the system is not ready to use its GPUs",
    803: "the driver's library and its kernel module are of different versions",
    804: "the driver is older than the compatibility library asks for",
    999: "the driver does not say why",
}
"""Reasons for no GPU, by the CUresult of cuInit."""


@dataclass(frozen=True)
class Gpu:
    """A GPU."""

    ordinal: int
    """The driver's number for it."""
    name: str
    sm: int
    """Compute capability, 90 for 9.0."""
    memory: int
    """Bytes."""


@dataclass(frozen=True)
class DetectedGpus:
    """The GPUs of a machine."""

    driver: str = ""
    """The CUDA version that the driver supports, such as "13.0"."""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    """The reason if there is no GPU, else ""."""


def detect(library: Any = None) -> DetectedGpus:
    """Ask the driver for its GPUs; `library` replaces the driver's library in tests."""
    if library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError:
            return DetectedGpus(problem=f"no NVIDIA driver ({LIBRARY} cannot be loaded)")
    code = library.cuInit(0)
    if code:
        return DetectedGpus(_version(library), problem=_REASONS.get(code, f"cuInit gives CUDA error {code}"))
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return DetectedGpus(_version(library), problem=_REASONS[_NO_DEVICE])
    gpus = [gpu for ordinal in range(count.value) if (gpu := _gpu(library, ordinal)) is not None]
    return DetectedGpus(_version(library), tuple(gpus), "" if gpus else "the driver does not describe its GPUs")


def _gpu(library: Any, ordinal: int) -> Gpu | None:
    """One GPU, or None if the driver does not describe it."""
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    refused = (
        library.cuDeviceGet(ctypes.byref(device), ordinal)
        or library.cuDeviceGetName(name, len(name), device)
        or library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        or library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if refused:
        return None
    return Gpu(ordinal, name.value.decode(errors="replace"), 10 * major.value + minor.value, memory.value)


def _version(library: Any) -> str:
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
