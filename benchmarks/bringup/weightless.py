"""A plan on the GPU without an engine: machine code of the carried folder, and weights that no checkpoint has.

Weights decide neither which launches there are nor how long they take, as long as they are numbers: so each kind gets
64 MiB of random bytes that are valid for it, repeated over all its weights by copies inside the GPU. Random bits draw
the power that real ones do; zeros run some 13 % too fast.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from bringup.carry import Carry
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.placement import Placement
from llmc.runtime.errors import EngineError
from llmc.runtime.plan.budget import packed, tensors_of
from llmc.runtime.plan.plan import MachineCode, Plan, Tensor
from llmc.runtime.progress import Progress

BLOCK = 64 << 20
"""Bytes of random numbers of a kind."""
SCALE = 0.01


@dataclass
class Weightless:
    """A carried plan as contents of a device (`runtime/cuda/contents.py`)."""

    carry: Carry
    name: str
    plan: Plan

    def __post_init__(self) -> None:
        self.what = f"{self.name} without weights"
        self.max_batch = max(program.sequences for program in self.plan.programs)

    def placement(self, plan: Plan) -> Placement:
        """An offset of its own for every weight."""
        offsets, nbytes = packed(tensors_of(plan, "weight", {}))
        return Placement(offsets, (), {}, frozenset(), nbytes)

    def cubin(self, code: MachineCode, what: str) -> bytes:
        """The machine code of a kernel.

        Raises:
            EngineError: the carried folder has no such bytes.
        """
        found = self.carry.data[code.offset : code.offset + code.size]
        if len(found) != code.size:
            raise EngineError(
                f"expected machine code for kernel {what} of {self.what}",
                found="no such bytes",
                fix="make the carry again",
            )
        return found

    def ptx(self, code: MachineCode) -> str:
        name = self._by_place.get((code.offset, code.size))
        return self.carry.ptx(name) if name is not None else ""

    def fill(self, placement: Placement, base: int, driver: Driver, progress: Progress) -> None:
        """Copy blocks of random numbers over the weights."""
        places: dict[str, list[tuple[int, int]]] = {}
        for name, tensor in self.plan.tensors.items():
            if tensor.kind == "weight":
                place = base + placement.offsets[name], tensor.bytes({})
                places.setdefault(kind_of(name, tensor), []).append(place)
        with progress.stage("weights", placement.bytes) as advance:
            for kind, wanted in sorted(places.items()):
                scatter(driver, kind, wanted)
                advance(sum(nbytes for _, nbytes in wanted))

    @cached_property
    def _by_place(self) -> dict[tuple[int, int], str]:
        return {code.cubin: name for name, code in self.carry.code.items()}


def scatter(driver: Driver, kind: str, places: Iterable[tuple[int, int]]) -> None:
    """Random numbers of a kind at places (address, bytes) of the GPU, the same block over and over; done on return."""
    places = tuple(places)
    block = min(BLOCK, max((nbytes for _, nbytes in places), default=0))
    if not block:
        return
    with ExitStack() as cleanup:
        stream = driver.stream()
        cleanup.callback(driver.drop_stream, stream)
        host = driver.allocate_host(block, "random numbers")
        cleanup.callback(driver.free_host, host)
        source = driver.allocate(block, "random numbers")
        cleanup.callback(driver.free, source)
        view = np.ctypeslib.as_array((ctypes.c_ubyte * block).from_address(host))
        view[:] = valid(_random(block), kind)
        driver.copy_in(source, host, block, stream)
        for address, nbytes in places:
            for start in range(0, nbytes, block):
                driver.copy(address + start, source, min(block, nbytes - start), stream)
        driver.wait(stream)


@cache
def _random(nbytes: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(0).bytes(nbytes), np.uint8)


def kind_of(name: str, tensor: Tensor) -> str:
    """The kind of a weight's bytes: a dtype, or for u8 codes or scales."""
    return f"u8 {'scales' if 'scale' in name else 'codes'}" if tensor.dtype == "u8" else tensor.dtype


def valid(random: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of a kind out of random bytes: no NaN, no infinity, and about the size of weights.

    Codes: E4M3 without its NaN (0x7F and 0xFF), of which any nibble is also a code of 4 bits. Scales: 0x30 to 0x37, as
    E4M3 0.5 to 0.94. bf16: 2^-7 to 2^-6, of either sign. f16: 2^-7. f32: 0.01.
    """
    if kind == "u8 codes":
        return random & 0xF7
    if kind == "u8 scales":
        return random & 0x07 | 0x30
    words = random[: random.size // 4 * 4].view("<u4")
    made = np.zeros(random.size, np.uint8)
    room = made[: words.size * 4]
    if kind == "bf16":
        room[:] = (words & 0x807F807F | 0x3C003C00).astype("<u4").view(np.uint8)
    elif kind == "f16":
        room[:] = (words & 0x83FF83FF | 0x20002000).astype("<u4").view(np.uint8)
    elif kind == "f32":
        room[:] = np.full(words.size, SCALE, "<f4").view(np.uint8)
    return made
