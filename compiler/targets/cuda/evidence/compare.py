"""What a kernel in CUDA C++ has over the Triton kernel of the same linear, from machine code alone: no GPU ran either.

Three criteria, of which each must be met for a kernel to be kept:

    a   bytes in flight   at least bandwidth x 800 ns / processors (Little's law), and more than Triton's kernel
    b   cycles            fewer for the same work, and no barrier between the products of one iteration and the next
    c   spills            none, and no local memory

Cycles are those of a multiprocessor for a unit of work: the largest of what each of its parts needs at its published
rate. A loop with a barrier, or with a wait for all products, does one thing after the other in a block: then cycles are
at least the sum of issue and products, divided by the blocks that run at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .....runtime.chips import MULTIPROCESSORS, chip
from .....runtime.errors import ResourceError
from .....runtime.plan.formula import value
from .....runtime.progress import Progress
from ..call import KernelCall
from ..cubins.compile import Cubin, Specialization, compile_all, specialization_of
from ..cubins.elf import image_of
from ..cubins.figures import main_loop, ring_bytes, thread_bytes_in_flight, weights_of
from ..cubins.sass import Listing, disassemble, disassembler
from .demand import PER_CLOCK, barriers_of, copied_bytes, operand_bytes, products_of

LATENCY = 800e-9
"""Seconds from a request to its bytes, of a loaded memory: what the criterion assumes."""
CHIPS = ("h100", "h200")
UNIT = {"stream": 16 << 10, "product": 128**3}
"""Work that cycles are told for: bytes of weights of a stream, multiplications of a product."""
_SHARED_PER_CLOCK = 128
"""Bytes of shared memory (CUDA programming guide)."""
_SCHEDULERS = 4
_LOCAL = ("LDL", "STL")
_COUNTED = ("in flight", "issue", "tensor", "shared", "cycles", "L2 bytes", "barriers", "registers", "spills")
_HEAD = ("linear", "kernel", "tile", "blocks", *_COUNTED, "verdict")
_ROW_COPY = "UBLKCP"


@dataclass(frozen=True)
class Side:
    """One kernel at one shape; cycles are those of `UNIT`."""

    kernel: str
    tile: str
    blocks: float
    """That run on a multiprocessor at once, of this grid."""
    in_flight: int
    """Most bytes of copies in flight on a multiprocessor, of this grid."""
    loop: int
    issue: int
    tensor: int
    shared: int
    l2: int
    """Bytes read from L2; its rate is not published, so no cycles follow."""
    cycles: int
    barriers: tuple[str, ...]
    """Instructions of the loop at which its products wait for all threads, or for all products."""
    registers: int
    spills: int
    local: int
    """Instructions that access local memory."""


@dataclass(frozen=True)
class Pair:
    """A linear by both routes."""

    name: str
    unit: str
    native: Side
    triton: Side

    @property
    def verdict(self) -> dict[str, bool]:
        """Whether the native kernel meets each criterion."""
        own, other = self.native, self.triton
        return {
            "a": own.in_flight >= max(map(least_in_flight, CHIPS)) and own.in_flight > other.in_flight,
            "b": own.cycles < other.cycles and not own.barriers,
            "c": own.spills == 0 and own.local == 0,
        }


def least_in_flight(name: str) -> int:
    """Bytes that a multiprocessor must have in flight to keep a chip's memory busy."""
    return round(chip(name).bandwidth * LATENCY / chip(name).processors)


def clock() -> float:
    """Hz at which the published FLOP/s of FP8 are those of `PER_CLOCK`."""
    rate = chip("h200").fp8
    assert rate is not None
    return rate / (2 * chip("h200").processors * PER_CLOCK["Q"])


def memory_cycles(name: str) -> int:
    """Cycles in which a multiprocessor's part of a chip's memory gives a unit of a stream."""
    return round(UNIT["stream"] * chip(name).processors * clock() / chip(name).bandwidth)


def compare(
    calls: Iterable[tuple[str, str, int, KernelCall, KernelCall]], progress: Progress, jobs: int | None = None
) -> tuple[Pair, ...]:
    """The pairs of (name, unit, tokens, native call, Triton call), compiled for sm_90.

    Raises:
        ResourceError: the compilers or the disassembler are not installed.
    """
    program = disassembler()
    if program is None:
        raise ResourceError("cannot count cycles without a disassembler", fix="pip install nvidia-cuda-nvdisasm")
    listed = [*calls]
    every = list(dict.fromkeys(specialization_of(call) for *_, own, other in listed for call in (own, other)))
    cubins = compile_all(every, 90, progress=progress, jobs=jobs)
    codes = [image_of(cubins[one].data, cubins[one].code.entry).code for one in every]
    listings = dict(zip(every, disassemble(codes, 90, program), strict=True))

    def side(call: KernelCall, unit: str, tokens: int) -> Side:
        one = specialization_of(call)
        return _side(one, cubins[one], listings[one], _programs(call, tokens), unit)

    return tuple(
        Pair(name, unit, side(own, unit, tokens), side(other, unit, tokens))
        for name, unit, tokens, own, other in listed
    )


def _programs(call: KernelCall, tokens: int) -> int:
    programs = 1
    for size in call.grid:
        programs *= value(str(size), {"tokens": tokens})
    return programs


def _side(specialization: Specialization, cubin: Cubin, listing: Listing, programs: int, unit: str) -> Side:
    loop, sizes = main_loop(listing), dict(specialization.constants)
    native, threads = bool(specialization.parameters), 32 * specialization.warps
    products = products_of(loop, specialization)
    most = MULTIPROCESSORS[90].resident(threads, cubin.code.registers, cubin.shared)
    blocks = min(most, programs / chip("h200").processors)
    if native:
        flying = ring_bytes(specialization)
        copied = flying // specialization.stages
    else:
        flying, copied = thread_bytes_in_flight(loop) * threads, copied_bytes(loop) * threads
    issued = len(loop) * products.warps + (_asking(listing) * int(sizes["BLOCK_N"] or 0) if native else 0)
    if unit == "stream":
        weights = weights_of(specialization, loop) * 32 * products.warps
        done = weights * (2 if sizes["FORMAT"] == "dense" else 1)
    else:
        done = products.multiplications
    need = {
        "issue": issued / _SCHEDULERS,
        "tensor": products.cycles,
        "shared": (copied + operand_bytes(loop, products.warps)) / _SHARED_PER_CLOCK,
    }
    barriers = barriers_of(loop)
    serial = (need["issue"] + need["tensor"]) / max(blocks, 1) if barriers else 0.0
    per = UNIT[unit] / done
    return Side(
        kernel=specialization.kernel,
        tile=f"{sizes['BLOCK_N']}x{sizes['BLOCK_K']}x{sizes['BLOCK_M']}, {specialization.stages} stages",
        blocks=round(blocks, 2),
        in_flight=round(flying * blocks),
        loop=len(loop),
        **{name: round(cycles * per) for name, cycles in need.items()},
        l2=round(copied * per),
        cycles=round(max(*need.values(), serial) * per),
        barriers=barriers,
        registers=cubin.code.registers,
        spills=cubin.code.spills,
        local=sum(one.name in _LOCAL for one in listing.instructions),
    )


def _asking(listing: Listing) -> int:
    """Instructions with which the warp that fills the ring asks for one row; 0 if it asks for tiles, not rows."""
    loops = [loop for loop in listing.loops if any(one.name == _ROW_COPY for one in loop)]
    return len(loops[0]) if loops else 0


def limits() -> dict[str, dict[str, int]]:
    """What a chip asks of a multiprocessor: bytes in flight, and cycles of its memory for a unit of a stream."""
    return {name: {"in_flight": least_in_flight(name), "memory": memory_cycles(name)} for name in CHIPS}


def legend() -> Iterator[str]:
    """The criteria and their numbers, as lines."""
    said = ", ".join(f"{name} {one['in_flight']} (memory {one['memory']} cycles)" for name, one in limits().items())
    yield f"a: bytes in flight a multiprocessor, more than Triton's and at least bandwidth x 800 ns / 132: {said}"
    yield f"b: cycles at {clock() / 1e9:.2f} GHz for {UNIT['stream']} bytes of weights, or 128 x 128 x 128 products:"
    yield "   the largest of issue, tensor and shared, or with barriers (issue + tensor) / blocks"
    yield "c: no spills and no local memory. Kept: a, b and c. No GPU has run these kernels."


def rows_of(pairs: Iterable[Pair]) -> Iterator[tuple[str, ...]]:
    """A table's rows: for each pair the native kernel, then Triton's."""
    yield _HEAD
    for pair in pairs:
        for side in (pair.native, pair.triton):
            said = " ".join(f"{name}:{'yes' if met else 'NO'}" for name, met in pair.verdict.items())
            numbers = (side.in_flight, side.issue, side.tensor, side.shared, side.cycles, side.l2, len(side.barriers))
            shown = *map(str, numbers), str(side.registers), str(side.spills)
            first = (pair.name, said) if side is pair.native else ("", "")
            yield first[0], side.kernel, side.tile, f"{side.blocks:.2f}", *shown, first[1]
