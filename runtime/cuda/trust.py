"""Judges the machine code of an engine before a GPU gets it: cubins and PTX are programs, which an engine's digests
only tell to be whole.

`any` takes what the engine holds; `digest` what llmc has compiled on this machine before, by its kernel cache;
`rebuild` what this llmc compiles to the same bytes, for which the caller brings the compiler.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..engine_file.file import EngineFile
from ..environment import KERNELS, cache_folder
from ..errors import EngineError, RecipeError, VerifyError, nearest
from ..files.sealed import UNFINISHED, read_sealed
from ..plan.plan import Plan
from .contents import EngineContents

TRUST = ("any", "digest", "rebuild")
Judge = Callable[[EngineFile, str], None]
"""Raises if the code of a profile, which is a GPU's, must not run."""
Compiled = tuple[str, str]
"""Digests of a kernel's machine code and PTX; "" for PTX that an engine does not hold."""


def judge_of(trust: str | None, rebuild: Judge) -> Judge | None:
    """How the code of an engine is judged; None if nobody asked.

    Raises:
        RecipeError: `trust` is none of TRUST.
    """
    if trust is None:
        return None
    judges: dict[str, Judge] = {"any": lambda engine, profile: None, "digest": by_digest, "rebuild": rebuild}
    if trust not in judges:
        found = f"{trust!r}{nearest(trust, TRUST)}"
        raise RecipeError(f"expected trust as {', '.join(TRUST)}", found=found)
    return judges[trust]


def by_digest(engine: EngineFile, profile: str) -> None:
    """Check that llmc has compiled every kernel of a profile on this machine, and their PTX.

    Raises:
        EngineError: the profile has no plan or code of ours.
        VerifyError: there is other code; names a kernel.
    """
    wanted = compiled_of(engine, profile)
    folder = cache_folder()
    left = dict(wanted)
    for made in _compiled_here(folder / KERNELS) if folder is not None else ():
        for one in (made, (made[0], "")):
            left.pop(one, None)
        if not left:
            return
    if left:
        raise VerifyError(
            f"cannot trust the machine code of profile {profile!r} of {engine.path}",
            found=f"{len(left)} of {len(wanted)} kernels were not compiled on this machine, first {min(left.values())}",
            fix="--trust rebuild, which compiles them again, or --profile cpu",
        )


def compiled_of(engine: EngineFile, profile: str) -> dict[Compiled, str]:
    """The name of a kernel for each code of a profile, as a device will be given it.

    Raises:
        EngineError: the profile has no plan or code of ours.
    """
    graph = engine.profile(profile).graph
    contents = EngineContents(engine, profile)
    found: dict[Compiled, str] = {}
    for module in Plan.from_json(engine.section(graph), what=f"{engine.path}: {graph}").modules:
        if module.code is None:
            raise EngineError(f"expected machine code for kernel {module.kernel} of {contents.what}", found="none")
        code, ptx = contents.cubin(module.code, module.kernel), contents.ptx(module.code)
        found[_digest(code), _digest(ptx.encode()) if ptx else ""] = module.kernel
    return found


def _compiled_here(folder: Path) -> Iterator[Compiled]:
    """What the kernel cache holds (compiler/targets/cuda/cubins/cache.py), the newest first."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
    except OSError:  # there is no cache
        return
    for path in entries:
        entry = None if path.name.startswith(UNFINISHED) else read_sealed(path)
        answer = entry.get("answer") if isinstance(entry, dict) else None
        if isinstance(answer, dict) and "data" in answer:
            yield _digest(base64.b64decode(answer["data"])), _digest(answer["ptx"].encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
