"""Times the forms of one linear on a GPU, with weights outside of caches; all results must agree with the first.

A form is a call with one tile. Its launches are one CUDA graph, so the time excludes the host. Each launch reads a
different copy of the weights; together the copies are larger than any L2, like a model's weights during decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from .....runtime.cuda.driver import Driver, keep
from .....runtime.cuda.launches import BoundLaunch, pack
from .....runtime.cuda.ring import Pinned
from .....runtime.cuda.tensor_maps import passed
from .....runtime.cuda.upload import Staging
from .....runtime.dtypes import KERNEL_DTYPES
from .....runtime.numbers import bf16_to_f32
from .....runtime.plan.formula import value
from ..call import ROUNDING, KernelCall, Operand
from ..cubins.compile import Cubin

_GARBAGE = 0xFF
"""This byte repeated is NaN in every floating-point dtype, so elements that a form does not write are never right."""
_RESULT, _COUNTERS = "y", "counters"


@dataclass(frozen=True)
class Effort:
    """How thoroughly a linear is measured."""

    rounds: int = 25
    """The result is their median."""
    cold: int = 256 << 20
    """Bytes of weights that are read before a copy is read again: twice the largest L2 (B200)."""
    copies: int = 512
    """Most copies of the weights; weights of less than cold / copies bytes are read from a cache."""


@dataclass(frozen=True)
class Form:
    """A call of the linear with one tile, and its machine code."""

    call: KernelCall
    cubin: Cubin


def measure_forms(
    driver: Driver,
    forms: Sequence[Form],
    contents: Mapping[str, np.ndarray],
    weights: Collection[str],
    sizes: Mapping[str, int],
    *,
    effort: Effort,
    within_limit: Callable[[], bool],
) -> list[float | None] | None:
    """Seconds of a launch of each form, None for a form whose result differs from the first's; None if time ran out.

    `contents` holds the values of every operand that is read, by name, also those named in `weights`. Forms write `y`;
    they may have a workspace, and counters, which start as zeros and must be zeros afterwards.

    Raises:
        ResourceError: not enough memory, or the driver refuses.
        EngineError: a kernel failed.
    """
    with ExitStack() as cleanup:
        bench = _Bench(driver, forms, contents, weights, sizes, effort, cleanup)
        ready = [bench.prepare(form) for form in forms]
        reference = bench.result(ready[0])
        right = [index == 0 or bench.agrees(bench.result(one), reference) for index, one in enumerate(ready)]
        graphs = {index: bench.graph(ready[index]) for index, ok in enumerate(right) if ok}
        times = bench.times(graphs, effort.rounds, within_limit)
        return None if times is None else [times.get(index) for index in range(len(forms))]


class _Bench:
    """The device memory of one linear, on one stream; `cleanup` frees all of it."""

    def __init__(
        self,
        driver: Driver,
        forms: Sequence[Form],
        contents: Mapping[str, np.ndarray],
        weights: Collection[str],
        sizes: Mapping[str, int],
        effort: Effort,
        cleanup: ExitStack,
    ) -> None:
        self._driver, self._sizes, self._cleanup = driver, sizes, cleanup
        self._stream = keep(cleanup, driver.stream(), driver.drop_stream)
        self._pinned = Pinned(driver, "measuring", cleanup)
        room: dict[str, int] = {}
        for form in forms:
            for operand in form.call.operands.values():
                room[operand.name] = max(room.get(operand.name, 0), value(operand.bytes, sizes))
        shared = {name: self._allocate(nbytes) for name, nbytes in room.items() if name not in weights}
        read = sum(room[name] for name in weights)
        count = min(effort.copies, max(1, -(-effort.cold // read)))
        self._copies = [shared | {name: self._allocate(room[name]) for name in weights} for _ in range(count)]
        first, *others = self._copies
        with ExitStack() as sent:
            staging = Staging(driver, 1, sent)
            for name, array in contents.items():
                staging.send(array, first[name])
        for copy in others:
            for name in weights:
                driver.copy(copy[name], first[name], room[name], self._stream)
        self._counters = shared.get(_COUNTERS, 0), room.get(_COUNTERS, 0)
        scratch = zip(*(self._scratch_of(form) for form in forms), strict=True)
        self._scratch = [self._allocate(max(each)) if max(each) else 0 for each in scratch]
        self._y, self._y_bytes = forms[0].call.operands[_RESULT], room[_RESULT]
        act = forms[0].call.operands["x"].dtype
        self._tolerance = ROUNDING[self._y.dtype] + ROUNDING.get(act, ROUNDING["bf16"])

    def prepare(self, form: Form) -> list[BoundLaunch]:
        """Load a form's code and bind a launch to every copy of the weights."""
        what = f"{form.call.kernel.name} with {dict(form.call.constants)}"
        module = keep(self._cleanup, self._driver.module(form.cubin.data, what), self._driver.unload)
        function = self._driver.function(module, form.cubin.code.entry, form.cubin.code.shared, what)
        config = self._driver.config(self._grid(form), form.call.warps, form.cubin.code.shared, self._stream)
        launches = []
        for addresses in self._copies:
            values: list[int | float | bytes] = []
            for (_, argument), kind in zip(form.call.ordered, form.cubin.types, strict=True):
                if isinstance(argument, Operand):
                    shape = [value(str(size), self._sizes) for size in argument.shape]
                    values.append(passed(self._driver, kind, addresses[argument.name], shape))
                else:
                    values.append(self._sizes[argument] if isinstance(argument, str) else argument)
            parameters = pack([*form.cubin.types, "*i8", "*i8"], [*values, *self._scratch], what=what)
            launches.append(BoundLaunch(function, config, parameters, what))
        return launches

    def result(self, ready: Sequence[BoundLaunch]) -> np.ndarray | None:
        """The result of a form as float32; None if a counter is not 0 afterwards."""
        driver, stream = self._driver, self._stream
        address = self._copies[0][_RESULT]
        driver.fill(address, _GARBAGE, self._y_bytes, stream)
        counters, nbytes = self._counters
        if nbytes:
            driver.fill(counters, 0, nbytes, stream)
        self._launch(ready, 0)
        if nbytes and self._receive(counters, nbytes).any():
            return None
        raw = self._receive(address, self._y_bytes).view(KERNEL_DTYPES[self._y.dtype].numpy)
        return bf16_to_f32(raw) if self._y.dtype == "bf16" else raw.astype(np.float32)

    def agrees(self, found: np.ndarray | None, expected: np.ndarray | None) -> bool:
        """True if two results differ only by rounding: max|a-b| <= tolerance * max|b|; False for NaN."""
        if found is None or expected is None:
            return False
        return bool(np.abs(found - expected).max() <= self._tolerance * np.abs(expected).max())

    def graph(self, ready: Sequence[BoundLaunch]) -> tuple[Any, int]:
        """(graph of launches over all copies of the weights, number of launches)."""
        count = max(len(self._copies), 4)

        def launches() -> None:
            for index in range(count):
                self._launch(ready, index % len(self._copies))

        return keep(self._cleanup, self._driver.captured(self._stream, launches), self._driver.drop_graph), count

    def times(
        self, graphs: Mapping[int, tuple[Any, int]], rounds: int, within_limit: Callable[[], bool]
    ) -> dict[int, float] | None:
        """Median seconds of a launch by form. Each round runs all forms, alternately forwards and backwards."""
        driver, stream = self._driver, self._stream
        events = {index: (self._event(), self._event()) for index in graphs}
        taken: dict[int, list[float]] = {index: [] for index in graphs}
        for turn in range(rounds + 1):
            for index in sorted(graphs, reverse=bool(turn % 2)):
                driver.record(events[index][0], stream)
                driver.launch_graph(graphs[index][0], stream)
                driver.record(events[index][1], stream)
            driver.wait(stream)
            if not within_limit():
                return None
            for index, (_, count) in graphs.items():
                taken[index].append(driver.elapsed(*events[index]) / count)
        return {index: median(each[1:]) for index, each in taken.items()}  # the first round warms up

    def _launch(self, ready: Sequence[BoundLaunch], copy: int) -> None:
        one = ready[copy]
        self._driver.launch(one.config, one.function, one.parameters.address, one.label)

    def _grid(self, form: Form) -> tuple[int, ...]:
        return tuple(value(size, self._sizes) for size in (*form.call.grid, 1, 1)[:3])

    def _scratch_of(self, form: Form) -> tuple[int, int]:
        programs = math.prod(self._grid(form))
        return form.cubin.code.global_scratch * programs, form.cubin.code.profile_scratch * programs

    def _event(self) -> Any:
        return keep(self._cleanup, self._driver.event(timing=True), self._driver.drop_event)

    def _allocate(self, nbytes: int) -> int:
        return keep(self._cleanup, self._driver.allocate(nbytes, "measuring"), self._driver.free)

    def _receive(self, source: int, nbytes: int) -> np.ndarray:
        host = self._pinned.view(nbytes)
        self._driver.copy_out(self._pinned.address, source, nbytes, self._stream)
        self._driver.wait(self._stream)
        return host[:nbytes].copy()
