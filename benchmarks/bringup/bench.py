"""The resources of a step's items: carried folder, driver, loaded kernels, earlier results, a clock on the GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bringup.carry import Carry
from bringup.code import Loader
from bringup.journal import Journal
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver


@dataclass
class Bench:
    """Of one process. Nothing touches the device before `driver` is asked for."""

    carry: Carry
    journal: Journal
    since: Path | None = None
    """Results of the first call, where they are not beside this one's."""
    _held: tuple[tuple[Any, ...], Any] | None = None

    @cached_property
    def driver(self) -> Driver:
        """The first GPU's, with its context; the journal says from then on which GPU it is.

        Raises:
            ResourceError: there is none, or it cannot be used.
        """
        os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")  # so that no kernel is loaded while it is timed
        began = time.perf_counter()
        made = Driver.load()
        card = gpus.detect().gpus[0]
        seconds = time.perf_counter() - began
        facts = {"card": card.name, "driver": made.version, "sm": made.sm, "processors": made.processors}
        if "card" not in self.journal.head:
            self.journal.note(**facts, memory=card.memory, context_s=seconds)
        return made

    @cached_property
    def loader(self) -> Loader:
        """Kernels of the carried folder on the GPU."""
        return Loader(self.carry, self.driver, self.journal)

    @cached_property
    def stream(self) -> Any:
        return self.driver.stream()

    @property
    def started(self) -> bool:
        """True if this process has used the device."""
        return "driver" in self.__dict__

    def result(self, name: str) -> Mapping[str, Any]:
        """What the item "step/item" found, also in an earlier process of this call; empty if it found nothing."""
        return self.journal.outcomes.get(name, {}).get("result", {})

    def allocate(self, nbytes: int, what: str, cleanup: ExitStack) -> int:
        """Device memory until `cleanup` is closed."""
        address = self.driver.allocate(nbytes, what)
        cleanup.callback(self.driver.free, address)
        return address

    def seconds(self, work: Callable[[], None], *, rounds: int = 10, warm: int = 3, stream: Any = None) -> float:
        """Median seconds of work that is put on a stream (this bench's by default), by the GPU's clock."""
        return seconds(self.driver, self.stream if stream is None else stream, work, rounds=rounds, warm=warm)

    def captured(self, work: Callable[[], None], cleanup: ExitStack) -> Callable[[], None]:
        """Work on this bench's stream as a graph: what launches it."""
        driver = self.driver
        driver.begin_capture(self.stream)
        try:
            work()
        finally:
            graph = driver.end_capture(self.stream)
        cleanup.callback(driver.drop_graph, graph)
        return lambda: driver.launch_graph(graph, self.stream)

    def held(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Something with a `close`, made once per key; only the last one asked for is kept open."""
        if self._held is None or self._held[0] != key:
            self.release()
            self._held = key, make()
        return self._held[1]

    def release(self) -> None:
        """Close what `held` keeps: a plan takes nearly all of the memory."""
        if self._held is not None:
            _, one = self._held
            self._held = None
            one.close()


def seconds(driver: Driver, stream: Any, work: Callable[[], None], *, rounds: int, warm: int = 3) -> float:
    """Median seconds of work that is put on a stream, by the GPU's clock, after some that warm up."""
    events = [driver.event(timing=True) for _ in range(rounds + 1)]
    try:
        for _ in range(warm):
            work()
        for event in events[:-1]:
            driver.record(event, stream)
            work()
        driver.record(events[-1], stream)
        driver.wait(stream)
        return median(driver.elapsed(a, b) for a, b in pairwise(events))
    finally:
        for event in events:
            driver.drop_event(event)
