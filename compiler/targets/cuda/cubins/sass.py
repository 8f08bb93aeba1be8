"""The instructions of compiled kernels, by NVIDIA's disassembler: all kernels of a chip in one run of it.

It takes half a second to start and little for an instruction, so it gets the code of all kernels one after another, as
raw bytes. Addresses are made the kernels' own again.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from .....runtime.errors import ResourceError

WHEEL = "nvidia-cuda-nvdisasm"
_PLACES = (("nvidia", "cu13/bin/nvdisasm"), ("triton", "backends/nvidia/bin/nvdisasm"))
"""The wheel's, then Triton's, which may be older than Triton's assembler."""
_BYTES = 16
"""Of an instruction, since Volta."""
_SUFFIX_FROM = 90
"""Kernels of newer chips are compiled with the features that only this chip has ("sm_90a")."""
_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.MULTILINE)
_TARGET = re.compile(r"0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Instruction:
    """One instruction. address: in bytes from the kernel's start; guard: its predicate ("@!P0") or ""."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers: LDG of LDG.E.128."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions in the order of their addresses, and `start`, which targets of branches count from."""

    instructions: tuple[Instruction, ...]
    start: int = 0

    @cached_property
    def loops(self) -> tuple[tuple[Instruction, ...], ...]:
        """What lies between a backward branch and its target, both included; shortest first.

        Rare paths are put behind the kernel's end and jump back: what has an end inside is no loop.
        """
        found = []
        for index, one in enumerate(self.instructions):
            target = _TARGET.search(one.operands) if one.name == "BRA" else None
            if target is not None and 0 <= (first := int(target[1], 16) - self.start) <= one.address:
                found.append(self.instructions[first // _BYTES : index + 1])
        return tuple(sorted((loop for loop in found if all(one.name != "EXIT" for one in loop)), key=len))


def disassembler() -> Path | None:
    """The program that is installed, if any."""
    for package, path in _PLACES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (program := Path(folder, path)).is_file():
                return program
    return None


def disassemble(codes: Sequence[bytes], sm: int, program: Path) -> tuple[Listing, ...]:
    """The listing of every kernel's code, in order.

    Raises:
        ResourceError: the program cannot be run, or does not know this code.
    """
    with tempfile.NamedTemporaryFile(prefix="llmc-", suffix=".sass") as file:
        file.write(b"".join(codes))
        file.flush()
        architecture = f"SM{sm}{'a' if sm >= _SUFFIX_FROM else ''}"
        try:
            done = subprocess.run(
                [program, "--binary", architecture, "--no-dataflow", file.name], capture_output=True, text=True
            )
        except OSError as error:
            raise _unusable(program, str(error)) from error
    if done.returncode:
        raise _unusable(program, done.stderr.strip()[:300])
    listings = tuple(_split(_parsed(done.stdout), [len(code) for code in codes]))
    if sum(len(one.instructions) for one in listings) * _BYTES != sum(map(len, codes)):
        raise _unusable(program, "not every instruction was told")
    return listings


def _unusable(program: Path, found: str) -> ResourceError:
    return ResourceError(f"disassembling with {program}", found=found, fix=f"pip install {WHEEL}")


def _parsed(text: str) -> Iterator[Instruction]:
    for address, guard, opcode, operands in _LINE.findall(text):
        yield Instruction(int(address, 16), guard, opcode, operands)


def _split(instructions: Iterable[Instruction], sizes: Sequence[int]) -> Iterator[Listing]:
    rest, start = iter(instructions), 0
    for size in sizes:
        own = islice(rest, size // _BYTES)
        yield Listing(tuple(replace(one, address=one.address - start) for one in own), start)
        start += size
