"""The fake libcuda of `libcuda.c`: compiled once per folder, and what a process needs to find it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
from support.paths import ROOT

from llmc.runtime import profiles

SOURCES = Path(__file__).parent
NAME = "libcuda.so.1"
BINDINGS = ("", "13.0.3")
"""Versions of cuda-bindings that tests run with: the installed one, and that of PyTorch for CUDA 13.0."""
_SECTION = struct.Struct("<IIQQQQIIQQ")
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")

needs_libcuda = [
    pytest.mark.skipif(not profiles.has_bindings(), reason="the extra 'cuda' is not installed"),
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="no C compiler for a libcuda"),
]
"""Marks of tests that run over it."""


@dataclass(frozen=True)
class Line:
    """A call of the fake, as its trace has it."""

    name: str
    facts: dict[str, str]

    def number(self, name: str) -> int:
        return int(self.facts[name])


def compiled(folder: Path, *, moved: int | None = None) -> dict[str, str]:
    """The environment of a process that loads the fake from `folder`, where it is compiled unless it is there.

    moved: bytes after which a copy or fill on the GPU stops; the fake's own number unless given.
    """
    library = folder / NAME
    if not library.exists():
        made = folder / f"{NAME}.{os.getpid()}"
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(made), str(SOURCES / "libcuda.c"), "-ldl"]
        command += [] if moved is None else [f"-DMOST_MOVED={moved}"]
        subprocess.run(command, check=True, capture_output=True)
        made.replace(library)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def trace(path: Path) -> Iterator[Line]:
    """What LLMC_FAKE_TRACE has written."""
    for line in path.read_text().splitlines():
        name, *facts = line.split()
        yield Line(name, dict(fact.split("=", 1) for fact in facts))


def cubin(*entries: str, sm: int = 90) -> bytes:
    """An ELF file whose sections are named as those of kernels; it holds no code."""
    names = [b"", b".shstrtab", *(f".text.{entry}".encode() for entry in entries)]
    table = b"\0".join(names) + b"\0"
    start = _HEADER.size + _SECTION.size * len(names)
    sections = b""
    for index, name in enumerate(names):
        kind = (0, 3)[index] if index < 2 else 1
        where = (start, len(table)) if index == 1 else (0, 0)
        at = table.index(b"\0" + name + b"\0") + 1 if name else 0
        sections += _SECTION.pack(at, kind, 0, 0, *where, 0, 0, 1, 0)
    ident = b"\x7fELF\2\1\1\x41\x08".ljust(16, b"\0")
    flags = 0x06000004 | sm << 8
    header = _HEADER.pack(ident, 2, 190, 1, 0, 0, _HEADER.size, flags, 64, 56, 0, 64, len(names), 1)
    return header + sections + table


def with_bindings(environment: dict[str, str], version: str) -> dict[str, str]:
    """With cuda-bindings of a version in front of those that are installed; "" for these."""
    return {**environment, "PYTHONPATH": str(_bindings(version))} if version else environment


def _bindings(version: str) -> Path:
    """A folder with cuda-bindings of a version, kept between runs; skips the test where pip cannot get it."""
    folder = ROOT / "build" / "tests" / f"cuda-bindings-{version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(dir=folder.parent))
    # without constraints: they may come from pip's settings, and name another version
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "-c", os.devnull, "--target", made)
    command = [sys.executable, "-m", "pip", "install", *map(str, options), f"cuda-bindings=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(made)
        pytest.skip(f"pip cannot get cuda-bindings {version}: {done.stderr.strip().splitlines()[-1:]}")
    try:
        made.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(made)
    return folder
