"""Caches compiled kernels on disk by a digest of everything that decides their bytes: a second build compiles nothing.

Entries are never changed or removed, so builds that run at the same time can share them. A cache with a file of its
tools' versions is a pack: it serves machines with other tools or none, and nothing is added to it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .....runtime.environment import KERNELS, TOOLS, cache_folder
from .....runtime.errors import EngineError
from .....runtime.files.records import read
from .....runtime.files.sealed import read_sealed, write_sealed
from .....runtime.files.strict_json import canonical, loads
from .assembler import assembler_version
from .nvrtc import compiler_version

_PACKAGE = Path(__file__).resolve().parents[4]
_KERNELS = Path(__file__).resolve().parents[1] / "kernels"
_CUDA = "*.cu*"
"""CUDA C++ and its headers."""
_WORKER = Path(__file__).resolve().with_name("worker.py")


@dataclass(frozen=True)
class Tools:
    """Versions of the tools that compile kernels: Triton and NVRTC, and the assembler of both."""

    triton: str
    ptxas: str
    nvrtc: str

    @staticmethod
    def installed() -> Tools:
        """The tools of this process.

        Raises:
            ResourceError: the assembler or NVRTC is not installed, or does not work.
        """
        return Tools(importlib.metadata.version("triton"), assembler_version(), compiler_version())


@dataclass(frozen=True)
class KernelCache:
    """Answers of the compiler by key in `folder`; with None nothing is kept.

    An entry is a sealed file (`runtime/files/sealed.py`) that repeats its key.
    """

    folder: Path | None

    @cached_property
    def packed(self) -> Tools | None:
        """The tools that made the entries if this is a pack, else None.

        Raises:
            EngineError: the file of the tools' versions is damaged.
        """
        try:
            text = (self.folder / TOOLS).read_bytes() if self.folder is not None else None
        except OSError:
            return None
        return None if text is None else read(Tools, loads(text, what=TOOLS, error=EngineError), TOOLS)

    @property
    def tools(self) -> Tools:
        """The tools that compile, or have compiled, the kernels of this cache."""
        return self.packed or Tools.installed()

    @staticmethod
    def default() -> KernelCache:
        """The user's cache; see LLMC_CACHE."""
        folder = cache_folder()
        return KernelCache(None if folder is None else folder / KERNELS)

    def load(self, key: str) -> Any:
        """The answer of a key, or None if the entry is absent, unreadable or damaged: the kernel is then compiled."""
        if self.folder is None:
            return None
        entry = read_sealed(self.folder / key)
        return entry["answer"] if isinstance(entry, dict) and entry.get("key") == key else None

    def save(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer. If the folder cannot be written, nothing is kept and no error is raised."""
        if self.folder is None or self.packed is not None:
            return
        write_sealed(self.folder / key, {"key": key, "answer": answer})


def key_of(request: Mapping[str, Any], sources: str, tools: Tools) -> str:
    """The key of a request to the compiler: a digest of the request, the sources, and the tools' versions."""
    return hashlib.sha256(canonical({"request": request, "sources": sources, **asdict(tools)})).hexdigest()


def sources_of(file: str) -> str:
    """A digest of all sources that decide the machine code of a kernel file's kernels.

    `file` is the dotted name of a Python file, or the path of CUDA C++, of which everything beside it counts.
    """
    if (path := _KERNELS / file).suffix == ".cu":
        return _digest({**_closure([_WORKER]), **_cuda(path.parent.glob(_CUDA))})
    return _digest(_closure((_KERNELS.joinpath(*file.split(".")).with_suffix(".py"), _WORKER)))


def source_digest() -> str:
    """A digest of all kernels' sources: if it equals an engine's, the interpreter runs the kernels of its cubins."""
    return _digest({**_closure(sorted(_KERNELS.rglob("*.py"))), **_cuda(_KERNELS.rglob(_CUDA))})


def _cuda(files: Iterable[Path]) -> dict[str, bytes]:
    return {path.relative_to(_PACKAGE).as_posix(): path.read_bytes() for path in files}


def _digest(sources: Mapping[str, bytes]) -> str:
    listing = "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in sorted(sources.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _closure(files: Iterable[Path]) -> dict[str, bytes]:
    """The files and all files of this package that they import at the top, transitively, by path inside the package.

    A kernel sees only constants of its own module, so imports inside functions cannot change it.
    """
    found: dict[str, bytes] = {}
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        name = path.relative_to(_PACKAGE).as_posix()
        if name not in found:
            found[name] = path.read_bytes()
            waiting += _imported(path, found[name])
    return found


def _imported(path: Path, text: bytes) -> Iterator[Path]:
    for node in _top_level(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for candidate in (base, *(base / alias.name for alias in node.names)):
                for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                    if file.is_file() and file != _KERNELS / "__init__.py":  # it grows with every kernel file
                        yield file


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _top_level(node)
