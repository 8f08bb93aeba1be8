"""A ring of pinned host buffers for steps, so that copies to and from the GPU overlap with the host's work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import LlmcError
from .driver import Driver, keep
from .launches import Span

SLOTS = 3
"""Two steps may be open (`PagedExecutor.depth` is 1); a third slot lets the host fill the next step without waiting.
A rank has one more for each further stage, as the steps of all stages are open at once."""
_LEAST = 64 << 10


class Pinned:
    """Pinned memory that grows on demand and then loses its contents. `cleanup` frees it."""

    def __init__(self, driver: Driver, what: str, cleanup: ExitStack) -> None:
        cleanup.callback(self._free)
        self._driver = driver
        self._what = what
        self.address = 0
        self._bytes = 0

    def view(self, nbytes: int) -> np.ndarray:
        """The first `nbytes` bytes; grows if there are fewer."""
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
    """A step's inputs and results on the host."""

    inputs: Pinned
    results: Pinned
    done: Any
    """The event recorded after the step's last copy."""
    step: int = 0
    """The step that uses the entry; 0 for none."""
    outputs: Mapping[str, tuple[int, Span]] = field(default_factory=dict)
    """Offset in the results, and the array there, by name."""


class Ring:
    """The entries, used in turn. Unread results are overwritten once all have been used."""

    def __init__(
        self, driver: Driver, input_bytes: int, cleanup: ExitStack, *, slots: int, wait: Callable[[Any], None]
    ) -> None:
        """Allocate for the largest inputs and small results, so most steps allocate nothing; `cleanup` frees it.

        `wait` returns once an event has passed.
        """
        self._wait = wait
        self._slots: list[RingEntry] = []
        self._steps = 0
        for _ in range(slots):
            inputs, results = (Pinned(driver, f"a step's {what}", cleanup) for what in ("inputs", "results"))
            self._slots.append(RingEntry(inputs, results, keep(cleanup, driver.event(), driver.drop_event)))
            inputs.view(input_bytes)
            results.view(0)

    def next(self) -> tuple[int, RingEntry]:
        """The number of a new step, and its entry; waits until the GPU is done with the entry."""
        self._steps += 1
        slot = self._slots[self._steps % len(self._slots)]
        if slot.step:
            self._wait(slot.done)
        slot.step, slot.outputs = self._steps, {}
        return self._steps, slot

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Wait for a step and copy its results out.

        Raises:
            LlmcError: a later step has overwritten the results, which is an error of the caller.
        """
        slot = self._slots[step % len(self._slots)]
        if slot.step != step:
            raise LlmcError(f"cannot read the results of step {step}", found=f"step {slot.step} in its place")
        self._wait(slot.done)
        size = max((offset + span.nbytes for offset, span in slot.outputs.values()), default=0)
        flat = slot.results.view(size)
        return {
            name: flat[offset : offset + span.nbytes].copy().view(span.dtype).reshape(span.shape)
            for name, (offset, span) in slot.outputs.items()
        }
