"""Measures of speed from a kernel's instructions, without a GPU: a change must not make them worse.

The main loop is the shortest loop with a tensor-core instruction, else the loop with the most loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .....runtime.chips import MULTIPROCESSORS
from .compile import Cubin, Specialization
from .elf import image_of
from .sass import Instruction, Listing, disassemble

_MMA = re.compile(r"(UTC)?[HQIO](G)?MMA")
"""Tensor-core instructions of a thread block (UTC), of four warps (G), of one warp; HFMA2.MMA is not one."""
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)|(16)(8)(\d+)")
_WAIT = re.compile(r"SB\d, 0x([0-9a-f]+)$")
_LOADS = {"LDG", "LDGSTS", "LDS", "LD"}
COPIES = {"UBLKCP", "UTMALDG", "UTMALDG2D"}
"""Copies whose size is not part of the instruction."""
_HALVES = ("*bf16", "*fp16")
_UTC_ROWS, _UTC_COLUMNS = 128, {"H": 16, "Q": 32, "I": 32, "O": 64}
"""Rows and, by kind, columns of weights of a block's instruction, whose shape is in a register and not in its name."""


@dataclass(frozen=True)
class Figures:
    """Figures of one kernel."""

    loop: int | None
    """Instructions of the main loop."""
    instr_per_weight: float | None
    """Instructions of the main loop per weight that a thread multiplies; None if the kernel is not a linear."""
    mma: tuple[str, ...]
    """The kernel's tensor-core instructions with their shapes, each once."""
    in_flight: int | None
    """Most bytes of asynchronous copies, of weights and activations, in flight on a multiprocessor of a full chip:
    `thread_bytes_in_flight` x threads of a block x resident blocks. None if the sizes are unknown."""


def figures_of(cubins: Mapping[Specialization, Cubin], sm: int, program: Path) -> dict[Specialization, Figures]:
    """The figures of kernels compiled for one chip; `program` is the disassembler.

    Raises:
        ResourceError: the disassembler does not work.
        EngineError: a cubin is damaged.
    """
    if not cubins:
        return {}
    codes = [image_of(cubin.data, cubin.code.entry).code for cubin in cubins.values()]
    listings = disassemble(codes, sm, program)
    return {
        specialization: figures(specialization, cubin, listing)
        for (specialization, cubin), listing in zip(cubins.items(), listings, strict=True)
    }


def figures(specialization: Specialization, cubin: Cubin, listing: Listing) -> Figures:
    """The figures of one kernel."""
    loop = main_loop(listing)
    weights = weights_of(specialization, loop)
    threads = 32 * specialization.warps
    resident = MULTIPROCESSORS[cubin.sm].resident(threads, cubin.code.registers, cubin.shared)
    in_flight: int | None = thread_bytes_in_flight(loop) * threads
    if specialization.parameters:
        in_flight = ring_bytes(specialization)
    elif {one.name for one in loop} & COPIES:
        in_flight = None
    return Figures(
        loop=len(loop) or None,
        instr_per_weight=round(len(loop) / weights, 3) if weights else None,
        mma=tuple(sorted({one.opcode for one in listing.instructions if _MMA.fullmatch(one.name)})),
        in_flight=in_flight * resident if in_flight is not None else None,
    )


def main_loop(listing: Listing) -> tuple[Instruction, ...]:
    """The instructions of the main loop; empty if no loop loads."""
    for loop in listing.loops:
        if any(_MMA.fullmatch(one.name) for one in loop):
            return loop
    loads = [(sum(one.name in _LOADS for one in loop), loop) for loop in listing.loops]
    most, loop = max(loads, key=lambda pair: pair[0], default=(0, ()))
    return loop if most else ()


def weights_of(specialization: Specialization, loop: tuple[Instruction, ...]) -> float:
    """Weights per thread that one iteration of a linear's loop multiplies; 0 for other kernels.

    A product of m x n x k gives each thread m n k / threads multiplications, and a weight takes part in BLOCK_M of
    them, one per token, or in n if tokens are fewer. So the number of blocks of K in an iteration does not matter.
    """
    constants = dict(specialization.constants)
    block_n, block_m = (int(constants.get(name) or 0) for name in ("BLOCK_N", "BLOCK_M"))
    if not (block_n and block_m and "K" in constants):
        return 0
    weights = 0.0
    for one in loop:
        kind, shape = _MMA.fullmatch(one.name), _SHAPE.search(one.opcode)
        if kind is not None and kind[1]:
            of = one.name.removeprefix("UTC")[0]
            rows = block_n if of == "O" else min(block_n, _UTC_ROWS)  # FP4: weights are the columns, at most 256
            weights += rows * _UTC_COLUMNS[of] / (32 * specialization.warps)
        elif kind is not None and shape is not None:
            m, n, k = (int(size) for size in shape.groups() if size)
            weights += m * n * k / (128 if kind[2] else 32) / max(block_m, n if not kind[2] else 1)
    return weights


def ring_bytes(specialization: Specialization) -> int:
    """Bytes of weights and activations in the stages of a kernel in CUDA C++: all of them can be in flight."""
    sizes = {name: int(value) for name, value in specialization.constants if isinstance(value, int)}
    kinds = dict(zip(specialization.parameters, specialization.types, strict=True))
    w, x = (2 if kinds[name] in _HALVES else 1 for name in ("w", "x"))
    return sizes["STAGES"] * sizes["BLOCK_K"] * (sizes["BLOCK_N"] * w + sizes["BLOCK_M"] * x)


def thread_bytes_in_flight(loop: tuple[Instruction, ...]) -> int:
    """Most bytes of a thread's copies to shared memory that are in flight at a time.

    The loop waits (DEPBAR) until at most a given number of groups of copies (LDGDEPBAR) is left, then starts more:
    bytes of an iteration x (groups left by a wait / groups of an iteration + 1 / waits of an iteration).
    """
    copied = sum(map(_copied, loop))
    groups = sum(one.name == "LDGDEPBAR" for one in loop)
    left = [int(wait[1], 16) for one in loop if one.name == "DEPBAR" and (wait := _WAIT.match(one.operands))]
    if not (copied and groups and left):
        return copied
    return copied * max(left) // groups + copied // len(left)


def _copied(one: Instruction) -> int:
    """Bytes that an instruction copies to shared memory asynchronously, per thread."""
    if one.name != "LDGSTS":
        return 0
    return next((int(size) // 8 for size in one.modifiers if size in ("64", "128")), 4)
