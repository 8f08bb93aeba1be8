"""Loads carried kernels in the first way that the driver accepts, and keeps to it.

The ladder: the carried machine code; the carried PTX, compiled by the driver; the PTX, assembled by the machine's own
ptxas or nvcc; and as the last question, whether the machine's own Triton makes a kernel that loads, which tells whether
anything can, but carries no result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bringup.carry import Carry, Code
from bringup.journal import Journal
from llmc.runtime.cuda.contents import Contents
from llmc.runtime.cuda.driver import Driver, RefusedCode
from llmc.runtime.cuda.placement import Placement
from llmc.runtime.plan.plan import MachineCode, Plan
from llmc.runtime.progress import Progress

CUBIN, PTX, ASSEMBLED, TRITON, NONE = RUNGS = ("cubin", "ptx", "assembled", "triton", "none")
_TOOLKITS = ("/usr/local/cuda/bin",)
_OF_TRITON = ("backends", "nvidia", "bin")
_ASSEMBLERS = ("ptxas", "ptxas-blackwell")
_ASSEMBLING = 30
_COMPILING = 60
_PROBES = ("probe_null",)
"""Kernels that the ladder is tried with, best first; otherwise the smallest."""


@dataclass(frozen=True)
class Loaded:
    """A carried kernel on the GPU."""

    code: Code
    function: Any


@dataclass
class Loader:
    """Of one process. What was loaded stays loaded."""

    carry: Carry
    driver: Driver
    journal: Journal
    _kernels: dict[str, Loaded] = field(default_factory=dict)

    def kernel(self, name: str) -> Loaded:
        """Carried code by its id.

        Raises:
            RefusedCode: no rung of the ladder loads it.
            ResourceError, EngineError: the GPU has too little shared memory, or the code no such kernel.
        """
        if name not in self._kernels:
            code = self.carry.code[name]
            what = f"kernel {code.kernel} ({name})"
            module = self.module(self.carry.cubin(name), lambda: self.carry.ptx(name), what)
            function = self.driver.function(module, code.entry, code.shared, what)
            self._kernels[name] = Loaded(code, function)
        return self._kernels[name]

    def named(self, kernel: str) -> str | None:
        """The id of the first carried code of a kernel."""
        return next((name for name, code in self.carry.code.items() if code.kernel == kernel), None)

    @property
    def rung(self) -> str:
        """The rung that works; found out when it is first asked for."""
        if "rung" not in self.journal.head:
            self._climb()
        return self.journal.head["rung"]

    def module(self, cubin: bytes, ptx: Callable[[], str], what: str) -> Any:
        """A module, by the rung that works or one below it."""
        reasons = []
        for rung in RUNGS[RUNGS.index(self.rung) : RUNGS.index(TRITON)]:
            try:
                return self._load(rung, cubin, ptx, what)
            except (RefusedCode, AssemblerError) as error:
                reasons.append(f"{rung}: {error}")
        raise RefusedCode(f"cannot load {what}", found="; ".join(reasons) or f"only the rung {self.rung!r} works")

    def last_question(self) -> None:
        """Where no rung works: whether this machine's own Triton makes a kernel that loads; takes half a minute."""
        refused = self.journal.head.get("refused", {})
        try:
            self.driver.unload(self.driver.module(compiled_here(self.carry.sm), "a kernel compiled here"))
            self.journal.note(rung=TRITON)
        except (RefusedCode, AssemblerError) as error:
            self.journal.note(refused={**refused, TRITON: str(error)})

    def contents(self, of: Contents) -> Contents:
        """The same, with machine code that the rung needs."""
        return Assembled(of) if self.rung == ASSEMBLED else of

    def _load(self, rung: str, cubin: bytes, ptx: Callable[[], str], what: str) -> Any:
        if rung == CUBIN:
            return self.driver.module(cubin, what)
        if rung == PTX:
            return self.driver.jit(ptx(), what)
        return self.driver.module(assembled(ptx()), what)

    def _climb(self) -> None:
        """Try the rungs with one kernel, and note the first that works."""
        name = next((found for probe in _PROBES if (found := self.named(probe))), None) or self._smallest
        cubin, refused = self.carry.cubin(name), {}
        for rung in (CUBIN, PTX, ASSEMBLED):
            try:
                module = self._load(rung, cubin, lambda: self.carry.ptx(name), f"kernel {name}")
                self.driver.unload(module)
                break
            except (RefusedCode, AssemblerError) as error:
                refused[rung] = str(error)
        else:
            rung = NONE
        self.journal.note(rung=rung, **({"refused": refused} if refused else {}))

    @cached_property
    def _smallest(self) -> str:
        return min(self.carry.code, key=lambda name: self.carry.code[name].cubin[1])


class AssemblerError(Exception):
    """The machine has no assembler or compiler, or it refuses."""


@dataclass
class Assembled:
    """Contents whose machine code is made by this machine's assembler."""

    of: Contents

    def __post_init__(self) -> None:
        self.what, self.max_batch = self.of.what, self.of.max_batch

    def placement(self, plan: Plan) -> Placement:
        return self.of.placement(plan)

    def cubin(self, code: MachineCode, what: str) -> bytes:
        return assembled(self.of.ptx(code))

    def ptx(self, code: MachineCode) -> str:
        return self.of.ptx(code)

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        self.of.fill(placement, base, driver, progress)


def tools(*names: str) -> tuple[str, ...]:
    """Programs of these names on this machine: on the path, in the CUDA toolkit, and those that came with Triton."""
    triton = find_spec("triton")
    folders = [
        *_TOOLKITS,
        *(str(Path(place, *_OF_TRITON)) for place in (triton and triton.submodule_search_locations) or ()),
    ]
    found = [shutil.which(name, path=path) for name in names for path in (None, *folders)]
    return tuple(dict.fromkeys(path for path in found if path is not None))


@cache
def assembled(ptx: str) -> bytes:
    """Machine code for the chip that the PTX names, by this machine's assembler; kept in this process.

    Raises:
        AssemblerError: there is none, or it refuses.
    """
    chip = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    if chip is None:
        raise AssemblerError("the PTX names no chip")
    with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        commands = [[path, f"--gpu-name={chip[1]}", str(source), "-o", str(target)] for path in tools(*_ASSEMBLERS)]
        commands += [[path, "-cubin", f"-arch={chip[1]}", str(source), "-o", str(target)] for path in tools("nvcc")]
        reasons = []
        for command in commands:
            try:
                _ran(command, _ASSEMBLING)
                break
            except AssemblerError as error:
                reasons.append(str(error))
        else:
            raise AssemblerError("; ".join(reasons) or "neither ptxas nor nvcc is here")
        return target.read_bytes()


def compiled_here(sm: int) -> bytes:
    """Machine code of a small kernel by this machine's Triton, in a process of its own.

    Raises:
        AssemblerError: Triton is not here, or does not compile it.
    """
    with tempfile.TemporaryDirectory(prefix="bringup-") as folder:
        target = Path(folder, "kernel.cubin")
        script = Path(__file__).resolve().parent.parent / "gpu_triton.py"
        command = [sys.executable, str(script), "--sm", str(sm), "--out", str(target)]
        _ran(command, _COMPILING, {**os.environ, "TRITON_INTERPRET": "0"})
        return target.read_bytes()


def _ran(command: list[str], limit: float, environment: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssemblerError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise AssemblerError(f"{command[0]}: exit {done.returncode}: {json.dumps((done.stdout + done.stderr)[-600:])}")
