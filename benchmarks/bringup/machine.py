"""Step A1: the properties of the machine that affect measurements."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bringup.bench import Bench
from bringup.code import tools
from bringup.step import Item, Step
from llmc.runtime.machine import cpu_count, cpu_name, system_memory

PACKAGES = (
    *("numpy", "cuda-bindings", "torch", "triton", "onnxruntime", "onnx", "onnx-ir", "transformers", "tokenizers"),
    *("jinja2", "safetensors", "typer"),
)
TOOLS = ("nvidia-smi", "nvcc", "ptxas", "compute-sanitizer", "ncu", "nsys", "cuda-gdb", "nvdisasm")
_ASKED = (
    *("name", "driver_version", "pstate", "power.limit", "power.max_limit", "clocks.max.sm", "clocks.max.memory"),
    *("clocks.sm", "clocks.memory", "temperature.gpu", "memory.total", "memory.used"),
    *("mig.mode.current", "ecc.mode.current"),
)
_LIMIT = 4.0
_TAIL = 4000


def said(command: list[str], limit: float = _LIMIT) -> str:
    """A program's output, or the reason there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"[:200]
    return (
        done.stdout.strip() if not done.returncode else f"exit {done.returncode}: {(done.stdout + done.stderr)[:200]}"
    )


def gpu(bench: Bench) -> Mapping[str, Any]:
    """nvidia-smi's facts about the first GPU."""
    found = said(["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "-i", "0"])
    values = found.split(", ")
    known = dict(zip(_ASKED, values, strict=True)) if len(values) == len(_ASKED) else {"nvidia-smi": found}
    whole = said(["nvidia-smi", "-q", "-d", "CLOCK,POWER,PERFORMANCE"])
    slow = re.findall(r"^\s*(\w[\w ]+?)\s*: Active$", whole, re.MULTILINE)
    return {**known, "slowed by": slow, "said": whole[-_TAIL:]}


def host(bench: Bench) -> Mapping[str, Any]:
    """Processor, memory, disks, Python and its packages, and the CUDA programs that are here."""
    disks = {}
    for folder in ("/", "/dev/shm", "/tmp"):
        if Path(folder).exists():
            usage = shutil.disk_usage(folder)
            disks[folder] = {"free_gb": usage.free / 1e9, "total_gb": usage.total / 1e9}
    return {
        "cpu": cpu_name(),
        "cpus": cpu_count(),
        "nproc": os.cpu_count(),
        "memory_gb": system_memory().total / 1e9,
        "disks": disks,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {name: _version(name) for name in PACKAGES},
        "tools": {name: next(iter(tools(name)), None) for name in TOOLS},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _items(bench: Bench) -> Iterable[Item]:
    return [Item("gpu", gpu, 2 * _LIMIT + 1), Item("host", host, 5.0)]


STEP = Step("machine", 4, _items)
