"""What the instructions of a loop ask of a multiprocessor's parts: tensor cores, shared memory, copies, barriers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..cubins.compile import Specialization
from ..cubins.sass import Instruction

PER_CLOCK = {"Q": 4096, "H": 2048, "T": 1024}
"""Multiplications of a multiprocessor of sm_90 in a cycle, dense: 8 bits, 16 bits, TF32. Published as 1979, 989 and 495
TFLOP/s of 132 of them."""
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)|(16)(8)(\d+)")
_LANES = 32
_WIDE = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
_FILLERS = {"linear_stream": 1, "linear_gemm": 4}
"""Warps that fill the ring and multiply nothing, by kernel."""
_MATRICES = {"4": 16, "2": 8}


@dataclass(frozen=True)
class Products:
    """The tensor-core instructions of one iteration of all of a block's warps that multiply."""

    multiplications: int
    cycles: float
    """That they take at the published rate."""
    warps: int


def products_of(loop: Sequence[Instruction], specialization: Specialization) -> Products:
    """The products of a block in an iteration of its loop."""
    warps = specialization.warps - _FILLERS.get(specialization.kernel, 0)
    total, cycles = 0, 0.0
    for one in loop:
        shape = _shape(one)
        if shape is None:
            continue
        m, n, k = shape
        number = m * n * k * (warps // 4 if one.name.endswith("GMMA") else warps)
        total += number
        kind = "T" if "TF32" in one.modifiers else one.name[0]
        cycles += number / PER_CLOCK[kind]
    return Products(total, cycles, warps)


def operand_bytes(loop: Sequence[Instruction], warps: int) -> int:
    """Bytes of shared memory that loads, stores and products of all warps read or write in an iteration."""
    total = 0
    for one in loop:
        shape = _shape(one)
        if shape is not None and one.name.endswith("GMMA"):
            m, n, k = shape
            item = 1 if one.name[0] == "Q" else 2
            # an operand A in registers is named before the descriptor of B
            rows = n if re.match(r"R\d+, R\d+, gdesc", one.operands) else m + n
            total += rows * k * item * (warps // 4)
        elif one.name in ("LDS", "STS"):
            width = next((_WIDE[word] for word in one.modifiers if word in _WIDE), 4)
            total += width * _LANES * warps
        elif one.name in ("LDSM", "STSM"):
            width = next((_MATRICES[word] for word in one.modifiers if word in _MATRICES), 4)
            total += width * _LANES * warps
    return total


def copied_bytes(loop: Sequence[Instruction]) -> int:
    """Bytes that a thread copies from global to shared memory in an iteration."""
    return sum(
        next((int(size) // 8 for size in one.modifiers if size in ("64", "128")), 4)
        for one in loop
        if one.name == "LDGSTS"
    )


def barriers_of(loop: Sequence[Instruction]) -> tuple[str, ...]:
    """The loop's barriers of a block, fences of memory, and waits until no product is running."""
    return tuple(
        one.opcode
        for one in loop
        if one.name in ("BAR", "MEMBAR") or (one.opcode.startswith("WARPGROUP.DEPBAR") and one.operands.endswith("0x0"))
    )


def _shape(one: Instruction) -> tuple[int, int, int] | None:
    found = _SHAPE.search(one.opcode) if one.name in ("HMMA", "HGMMA", "QGMMA", "IGMMA", "IMMA") else None
    if found is None:
        return None
    m, n, k = (int(size) for size in found.groups() if size)
    return m, n, k
