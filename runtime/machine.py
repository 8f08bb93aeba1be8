"""CPUs and memory that this process may use: a container allows less than the machine reports."""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import RecipeError, shown
from .guard.limits import limit_of

UNKNOWN = sys.maxsize
"""Bytes reported if the system does not tell: planning then refuses nothing."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?) *(?:([kmgt]i?)b?|(b))?", re.IGNORECASE)
_BANDWIDTH_BYTES = 128 * 2**20
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of cgroup v2 and v1: files of the limit and of the bytes used, and the key of reclaimable bytes in memory.stat."""


@contextmanager
def without_collections() -> Iterator[None]:
    """Without Python's search for cycles, which takes a third of the time in which many lasting objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class SystemMemory:
    """Bytes of memory, within the cgroup's limit: all that this process may use, and those that are free now."""

    total: int
    available: int


def cpu_count(root: Path = Path("/")) -> int:
    """CPUs of the affinity mask, lowered to the cgroup's quota (rounded up); at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(-(-quota // period) for quota, period in _cpu_quotas(root))]))


def system_memory(root: Path = Path("/")) -> SystemMemory:
    """Memory of the machine, lowered to the limits of this process, and of its cgroup and that one's ancestors."""
    facts = _numbers(root / "proc/meminfo")
    if not facts and sys.platform == "win32":
        return SystemMemory(UNKNOWN, UNKNOWN)
    total = facts.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = facts.get("MemAvailable", facts.get("MemFree", total))
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    if (limit := limit_of("AS")) is not None:  # ulimit -v
        available = min(available, max(0, limit - _numbers(root / "proc/self/status").get("VmSize", 0)))
    return SystemMemory(total, available)


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's marketing name, else the platform's name for it."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def resident_memory() -> int:
    """Resident size of this process now, in bytes; the largest so far if the system tells only that."""
    return _numbers(Path("/proc/self/status")).get("VmRSS") or peak_memory()


def size_bytes(text: str | float, what: str = "an amount of memory") -> int:
    """Bytes of a size: `500M` and `4GB` count in powers of 1000, `512MiB` and `1Gi` of 1024, `700B` bytes; a lone
    number is in GiB.

    Errors call it `what`.

    Raises:
        RecipeError: it is no size above 0.
    """
    match = _SIZE.fullmatch(str(text).strip())
    unit = (match[2] or match[3] or "gi").lower() if match else ""
    count = float(match[1]) * (1024 if "i" in unit else 1000) ** "bkmgt".index(unit[0]) if match else 0
    if not 1 <= count < UNKNOWN:
        raise RecipeError(f"expected {what}, such as 500M, 4GB, 0.5GiB or 0.5", found=shown(text))
    return int(count)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; 0 if the system does not tell."""
    peak = _numbers(Path("/proc/self/status")).get("VmHWM")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        return 0
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def read_bandwidth(threads: int, repeat: int = 5) -> float:
    """Bytes/s that `threads` threads together read from memory: the best of `repeat` passes over 128 MiB."""
    import numpy as np

    data = np.ones(_BANDWIDTH_BYTES // 8, np.int64)
    parts = np.array_split(data, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            list(pool.map(np.max, parts))  # a maximum is bound by memory, a sum by its additions
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def _cpu_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(quota, period) of each cgroup with a quota."""
    for folder in _cgroup_folders(root, "cpu"):
        one_file = _text(folder / "cpu.max").split()
        two_files = [_text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        for fields in (one_file, two_files):
            if len(fields) == 2 and all(map(str.isdecimal, fields)) and int(fields[1]):
                yield int(fields[0]), int(fields[1])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of each cgroup with a limit."""
    for folder in _cgroup_folders(root, "memory"):
        for limit_file, used_file, cache_key in _MEMORY_FILES:
            limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
            if limit.isdecimal() and used.isdecimal():
                yield int(limit), int(used) - _numbers(folder / "memory.stat").get(cache_key, 0)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and its ancestors, for cgroup v2 and v1.

    Inside a container /proc/self/cgroup may show the host's path, of which only the mount's root is visible. A folder
    that does not exist has no limit, and the root is always among the ancestors.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(steps), -1, -1):
            yield base.joinpath(*steps[:depth])


def _numbers(path: Path) -> dict[str, int]:
    """The numbers in lines `Key: N kB` and `key N` of a file; kB are converted to bytes."""
    fields = (line.split() for line in _text(path).splitlines())
    return {
        f[0].rstrip(":"): int(f[1]) * (1024 if f[2:] else 1)
        for f in fields
        if len(f) > 1 and f[1].isdecimal() and f[2:] in ([], ["kB"])
    }


def _text(path: Path) -> str:
    """The file's text; "" if it does not exist or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
