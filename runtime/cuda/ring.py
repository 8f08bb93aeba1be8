"""Pinned host memory that steps take turns with: inputs go out and results come back while the host goes on."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import LlmcError
from .driver import Driver, keep
from .launches import Span

SLOTS = 3
"""Two steps may be open (`paged.PagedExecutor.depth` is 1); with a third, filling the next one waits for neither."""
_LEAST = 64 << 10


class Pinned:
    """Pinned memory that grows when more is asked for; what it held is then lost. `cleanup` frees it."""

    def __init__(self, driver: Driver, what: str, cleanup: ExitStack) -> None:
        cleanup.callback(self._free)
        self._driver = driver
        self._what = what
        self.address = 0
        self._bytes = 0

    def view(self, nbytes: int) -> np.ndarray:
        """The first bytes, of which there may not have been so many before."""
        if nbytes > self._bytes or not self._bytes:
            self._free()
            room = max(_LEAST, 1 << nbytes.bit_length())
            self.address = self._driver.allocate_host(room, self._what)
            self._bytes = room
        return np.ctypeslib.as_array((ctypes.c_ubyte * self._bytes).from_address(self.address))[:nbytes]

    def _free(self) -> None:
        if self._bytes:
            address, self.address, self._bytes = self.address, 0, 0
            self._driver.free_host(address)


@dataclass(eq=False)
class RingEntry:
    """A step's inputs and results on the host; `done` is recorded behind both. step: which one has it, 0 for none."""

    inputs: Pinned
    results: Pinned
    done: Any
    step: int = 0
    outputs: Mapping[str, tuple[int, Span]] = field(default_factory=dict)
    """Offset among the results, and what lies there."""


class Ring:
    """The slots. A step that is never read gives its slot up to the third one after it."""

    def __init__(self, driver: Driver, input_bytes: int, cleanup: ExitStack) -> None:
        """Room for the largest inputs and small results, so that most steps allocate nothing; `cleanup` frees it."""
        self._driver = driver
        self._slots: list[RingEntry] = []
        self._steps = 0
        for _ in range(SLOTS):
            inputs, results = (Pinned(driver, f"a step's {what}", cleanup) for what in ("inputs", "results"))
            self._slots.append(RingEntry(inputs, results, keep(cleanup, driver.event(), driver.drop_event)))
            inputs.view(input_bytes)
            results.view(0)

    def next(self) -> tuple[int, RingEntry]:
        """The number of a new step, and its slot; waits until the GPU is done with it."""
        self._steps += 1
        slot = self._slots[self._steps % SLOTS]
        if slot.step:
            self._driver.wait_event(slot.done)
        slot.step, slot.outputs = self._steps, {}
        return self._steps, slot

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Waits for a step, and copies its results out.

        Raises:
            LlmcError: its slot has been used again, which is a mistake of the caller.
        """
        slot = self._slots[step % SLOTS]
        if slot.step != step:
            raise LlmcError(f"the results of step {step}", found=f"step {slot.step} in its place")
        self._driver.wait_event(slot.done)
        size = max((offset + span.nbytes for offset, span in slot.outputs.values()), default=0)
        flat = slot.results.view(size)
        return {
            name: flat[offset : offset + span.nbytes].copy().view(span.dtype).reshape(span.shape)
            for name, (offset, span) in slot.outputs.items()
        }
