"""Times the tiles of a carried linear in turns, each as a graph of launches over more weights than any cache holds."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bringup.bench import Bench
from bringup.carry import Candidate, Swept
from bringup.weightless import BLOCK, kind_of, valid
from llmc.runtime.cuda.launches import Parameters, pack
from llmc.runtime.cuda.tensor_maps import passed
from llmc.runtime.dtypes import KERNEL_DTYPES
from llmc.runtime.errors import LlmcError
from llmc.runtime.numbers import bf16_to_f32
from llmc.runtime.plan.plan import Tensor

COLD = 192 << 20
"""Bytes of weights that are read before the first are read again: more than three times the L2 of an H100 or H200."""
MOST = 64
"""Copies of the weights; those of small linears come from a cache."""
LEAST = 4
"""Launches in a graph, so that its own start does not count."""
ROUNDS = 10
ROUNDING = 2.0**-7
"""What two right results differ by at most, of the largest: a rounding of the sum and one of the activations."""
_ZEROS = ("counters",)
_GARBAGE = 0xFF
_RESULT = "y"


@dataclass(frozen=True)
class Ready:
    """A candidate's launch for every copy of the weights."""

    function: Any
    config: Any
    parameters: tuple[Parameters, ...]


def measured(
    bench: Bench, linear: Swept, *, rounds: int = ROUNDS, cold: int = COLD, only: int | None = None
) -> dict[str, Any]:
    """Seconds of every candidate, and how far its result is from the first's; a refused one says why.

    only: of the first so many candidates.

    Raises:
        ResourceError: not enough memory, or nothing of the linear can be loaded.
        EngineError: a kernel failed.
    """
    with ExitStack() as cleanup:
        area = _Area(bench, linear, cold, cleanup)
        rows: list[dict[str, Any]] = []
        graphs: dict[int, tuple[Callable[[], None], int]] = {}
        reference: np.ndarray | None = None
        for index, candidate in enumerate(linear.candidates[:only]):
            code = bench.carry.code[candidate.code]
            row = {"tile": dict(candidate.tile), "registers": code.registers, "spills": code.spills}
            rows.append(row)
            try:
                ready = area.prepare(candidate)
            except LlmcError as error:
                if index == 0:
                    raise
                row["refused"] = str(error)[:300]
                continue
            found = area.result(ready)
            reference = found if reference is None else reference
            row |= agreement(found, reference)
            if row["agrees"]:
                graphs[index] = area.graph(ready, cleanup)
        for index, seconds in _times(bench, graphs, rounds).items():
            rows[index]["seconds"] = seconds
    return {"copies": len(area.copies), "candidates": rows}


class _Area:
    """The tensors of a linear on the device, with as many copies of its weights as it takes."""

    def __init__(self, bench: Bench, linear: Swept, cold: int, cleanup: ExitStack) -> None:
        self._bench, self._linear = bench, linear
        room = {name: KERNEL_DTYPES[dtype].bytes * math.prod(shape) for name, (dtype, shape) in linear.tensors.items()}
        with ExitStack() as filling:
            source = _Random(bench, min(BLOCK, max(room.values())), filling)
            shared = {
                name: self._made(name, room[name], source, cleanup) for name in room if name not in linear.weights
            }
            count = min(MOST, max(1, -(-cold // sum(room[name] for name in linear.weights))))
            self.copies = [
                {**shared, **{name: self._made(name, room[name], source, cleanup) for name in linear.weights}}
                for _ in range(count)
            ]
        self._room = room
        self._host = bench.driver.allocate_host(room[_RESULT], "a result")
        cleanup.callback(bench.driver.free_host, self._host)
        codes = [bench.carry.code[candidate.code] for candidate in linear.candidates]
        programs = [math.prod(candidate.grid) for candidate in linear.candidates]
        needs = [
            max(count * nbytes for count, nbytes in zip(programs, each, strict=True))
            for each in ([code.global_scratch for code in codes], [code.profile_scratch for code in codes])
        ]
        self._scratch = [bench.allocate(nbytes, "scratch", cleanup) if nbytes else 0 for nbytes in needs]

    def prepare(self, candidate: Candidate) -> Ready:
        loaded = self._bench.loader.kernel(candidate.code)
        code, driver = loaded.code, self._bench.driver
        config = driver.config(candidate.grid, code.warps, code.shared, self._bench.stream)
        parameters = []
        for addresses in self.copies:
            values = [
                passed(driver, kind, addresses[one], self._linear.tensors[one][1]) if isinstance(one, str) else one
                for one, kind in zip(candidate.arguments, code.types, strict=True)
            ]
            parameters.append(pack([*code.types, "*i8", "*i8"], [*values, *self._scratch], what=code.kernel))
        return Ready(loaded.function, config, tuple(parameters))

    def result(self, ready: Ready) -> np.ndarray:
        """What a candidate computes, as the bytes of y; what it does not write is NaN."""
        driver, stream, nbytes = self._bench.driver, self._bench.stream, self._room[_RESULT]
        address = self.copies[0][_RESULT]
        driver.fill(address, _GARBAGE, nbytes, stream)
        self._launch(ready, 0)
        driver.copy_out(self._host, address, nbytes, stream)
        driver.wait(stream)
        raw = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(self._host)).copy()
        dtype = self._linear.tensors[_RESULT][0]
        found = raw.view(KERNEL_DTYPES[dtype].numpy)
        return bf16_to_f32(found) if dtype == "bf16" else found.astype(np.float32)

    def graph(self, ready: Ready, cleanup: ExitStack) -> tuple[Callable[[], None], int]:
        """What launches it over all copies of the weights, and how many launches that is."""
        count = max(len(self.copies), LEAST)
        return self._bench.captured(lambda: self._all(ready, count), cleanup), count

    def _all(self, ready: Ready, count: int) -> None:
        for index in range(count):
            self._launch(ready, index % len(self.copies))

    def _launch(self, ready: Ready, copy: int) -> None:
        self._bench.driver.launch(ready.config, ready.function, ready.parameters[copy].address, "launch a tile")

    def _made(self, name: str, nbytes: int, source: _Random, cleanup: ExitStack) -> int:
        address = self._bench.allocate(nbytes, name, cleanup)
        if name in _ZEROS:
            self._bench.driver.fill(address, 0, nbytes, self._bench.stream)
        else:
            dtype, shape = self._linear.tensors[name]
            source.fill(address, nbytes, kind_of(name, Tensor("weight", dtype, tuple(map(str, shape)))))
        return address


class _Random:
    """A block of random bytes of each kind on the device, made when a kind is first asked for."""

    def __init__(self, bench: Bench, nbytes: int, cleanup: ExitStack) -> None:
        self._bench, self._nbytes, self._cleanup = bench, nbytes, cleanup
        self._blocks: dict[str, int] = {}
        self._bytes = np.frombuffer(np.random.default_rng(0).bytes(nbytes), np.uint8)
        self._host = bench.driver.allocate_host(nbytes, "random numbers")
        cleanup.callback(bench.driver.free_host, self._host)

    def fill(self, address: int, nbytes: int, kind: str) -> None:
        driver, stream = self._bench.driver, self._bench.stream
        if kind not in self._blocks:
            driver.wait(stream)
            view = np.ctypeslib.as_array((ctypes.c_ubyte * self._nbytes).from_address(self._host))
            view[:] = valid(self._bytes, kind)
            self._blocks[kind] = self._bench.allocate(self._nbytes, "random numbers", self._cleanup)
            driver.copy_in(self._blocks[kind], self._host, self._nbytes, stream)
            driver.wait(stream)
        for start in range(0, nbytes, self._nbytes):
            driver.copy(address + start, self._blocks[kind], min(self._nbytes, nbytes - start), stream)


def agreement(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """True if two float32 results are finite and equal up to rounding."""
    same = bool(np.array_equal(found.view(np.int32), expected.view(np.int32)))
    with np.errstate(invalid="ignore"):  # what is not finite agrees with its own bits alone
        off = 0.0 if same else float(np.abs(found - expected).max()) / (float(np.abs(expected).max()) or 1.0)
    finite = bool(np.isfinite(found).all())
    return {"agrees": off <= ROUNDING, "error": off, "same bits": same, "finite": finite}


def _times(bench: Bench, graphs: Mapping[int, tuple[Callable[[], None], int]], rounds: int) -> dict[int, float]:
    """Median seconds of a launch. Every round has all candidates, in turns forwards and backwards."""
    driver, stream = bench.driver, bench.stream
    events = {index: (driver.event(timing=True), driver.event(timing=True)) for index in graphs}
    taken: dict[int, list[float]] = {index: [] for index in graphs}
    try:
        for turn in range(rounds + 1):
            for index in sorted(graphs, reverse=bool(turn % 2)):
                driver.record(events[index][0], stream)
                graphs[index][0]()
                driver.record(events[index][1], stream)
            driver.wait(stream)
            for index, (_, count) in graphs.items():
                taken[index].append(driver.elapsed(*events[index]) / count)
    finally:
        for event in (event for pair in events.values() for event in pair):
            driver.drop_event(event)
    return {index: median(each[1:]) for index, each in taken.items()}  # the first round warms up


def summary(linear: Swept, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The heuristic's time and the best one's, which agrees with it."""
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return {}
    best = min(timed, key=lambda row: row["seconds"])
    speed = {"us": 1e6 * best["seconds"], "bytes_per_s": linear.bytes / best["seconds"]}
    return {
        "heuristic_us": 1e6 * rows[0]["seconds"] if "seconds" in rows[0] else None,
        "best": {"tile": best["tile"], **speed, "tflops": linear.operations / best["seconds"] / 1e12},
    }
