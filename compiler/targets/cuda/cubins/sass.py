"""Disassembles compiled kernels with NVIDIA's disassembler: all kernels of a chip in one run.

The program takes half a second to start and little time per instruction, so it gets the code of all kernels joined, as
raw bytes. Addresses are made relative to each kernel afterwards.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from .....runtime.errors import ResourceError
from .....runtime.files import temporary

WHEEL = "nvidia-cuda-nvdisasm"
"""The wheel that has the disassembler."""
_PLACES = (("nvidia", "cu13/bin/nvdisasm"), ("triton", "backends/nvidia/bin/nvdisasm"))
"""The wheel's program, then Triton's, which may be older than Triton's assembler."""
_BYTES = 16
"""Size of an instruction since Volta."""
_SUFFIX_FROM = 90
"""From this capability on, kernels are compiled for one chip with its own features ("sm_90a")."""
_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.MULTILINE)
_TARGET = re.compile(r"0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Instruction:
    """One instruction."""

    address: int
    """Bytes from the kernel's start."""
    guard: str
    """The predicate, such as "@!P0", or ""."""
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
    """A kernel's instructions by address; targets of branches are relative to `start`."""

    instructions: tuple[Instruction, ...]
    start: int = 0

    @cached_property
    def loops(self) -> tuple[tuple[Instruction, ...], ...]:
        """The instructions from the target of a backward branch to the branch, both included; shortest first.

        Rare paths lie behind the kernel's EXIT and jump back, so a range with an EXIT inside is not a loop.
        """
        found = []
        for index, one in enumerate(self.instructions):
            target = _TARGET.search(one.operands) if one.name == "BRA" else None
            if target is not None and 0 <= (first := int(target[1], 16) - self.start) <= one.address:
                found.append(self.instructions[first // _BYTES : index + 1])
        return tuple(sorted((loop for loop in found if all(one.name != "EXIT" for one in loop)), key=len))


def disassembler() -> Path | None:
    """The installed program, if there is one."""
    for package, path in _PLACES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (program := Path(folder, path)).is_file():
                return program
    return None


def disassemble(codes: Sequence[bytes], sm: int, program: Path) -> tuple[Listing, ...]:
    """The listings of kernels' code, in order.

    Raises:
        ResourceError: the program cannot be run, or cannot decode this code.
    """
    with temporary.folder("sass") as folder:
        file = folder / "code.sass"
        file.write_bytes(b"".join(codes))
        architecture = f"SM{sm}{'a' if sm >= _SUFFIX_FROM else ''}"
        try:
            done = subprocess.run(
                [program, "--binary", architecture, "--no-dataflow", file], capture_output=True, text=True
            )
        except OSError as error:
            raise _unusable(program, str(error)) from error
    if done.returncode:
        raise _unusable(program, done.stderr.strip()[:300])
    listings = tuple(_split(_parsed(done.stdout), [len(code) for code in codes]))
    if sum(len(one.instructions) for one in listings) * _BYTES != sum(map(len, codes)):
        raise _unusable(program, "it does not list every instruction")
    return listings


def _unusable(program: Path, found: str) -> ResourceError:
    return ResourceError(f"cannot disassemble with {program}", found=found, fix=f"pip install {WHEEL}")


def _parsed(text: str) -> Iterator[Instruction]:
    for address, guard, opcode, operands in _LINE.findall(text):
        yield Instruction(int(address, 16), guard, opcode, operands)


def _split(instructions: Iterable[Instruction], sizes: Sequence[int]) -> Iterator[Listing]:
    rest, start = iter(instructions), 0
    for size in sizes:
        own = islice(rest, size // _BYTES)
        yield Listing(tuple(replace(one, address=one.address - start) for one in own), start)
        start += size
