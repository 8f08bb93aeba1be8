"""A GPU that runs a plan (`plan.executor.Device`): loads it once, then runs steps on one stream.

A step is one copy of all its inputs, its launches (decode programs: one graph), and one copy per wanted buffer, in
stream order. So a step may start before earlier ones are read, and all programs share one arena.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from ..chips import capability, runs_on, target_for
from ..errors import EngineError, LlmcError, ResourceError
from ..plan.budget import Budget, aligned, packed, tensors_of
from ..plan.copies import fitted
from ..plan.plan import Plan
from ..progress import NO_PROGRESS, Progress, debug, debugging
from . import gpus
from .contents import Contents
from .driver import Driver, keep
from .exchange.communicator import Communicator, Peers
from .exchange.nccl import Nccl
from .launches import Allocations, BoundCollective, BoundLaunch, BoundProgram, bind
from .modules import Modules
from .placement import Placement
from .ring import SLOTS, Ring, RingEntry

_MAX_MIXED = 64
"""Number of mixed step sizes whose bound launches are cached."""


class CudaDevice:
    """A plan on a GPU.

    `timings` holds the seconds of each part of loading and of the last graph capture, `notes` messages for the user
    about loading.
    """

    def __init__(
        self,
        contents: Contents,
        plan: Plan,
        slots: int,
        *,
        driver: Driver | None = None,
        peers: Peers | None = None,
        nccl: Nccl | None = None,
        graphs: bool = True,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        """Check the requirements, then allocate and load; an exception leaves nothing allocated.

        The device owns `driver`. `peers` leads to the other ranks of the plan, with which it exchanges through `nccl`.
        With `graphs`, decode programs are captured once and replayed, unless --debug 3 times each launch.

        Raises:
            ResourceError: no GPU can run the plan, the driver is missing or too old, or memory is too small; or NCCL is
                missing, or cannot connect the ranks.
            EngineError: the plan does not match the engine, or weights do not match their digests.
            LlmcError: the job of the ranks is aborted.
        """
        self.timings: dict[str, float] = {}
        self._plan = plan
        self._times = debugging(3)
        self._replays = graphs and not self._times
        self._bounds: dict[tuple[int, tuple[int, ...]], BoundProgram] = {}
        self._graphs: dict[int, Any] = {}
        what = contents.what
        with ExitStack() as cleanup:
            with self._timed("context"):
                place = 0 if peers is None else peers.local_rank
                self._driver = Driver.load(_choose_gpu(plan.sm, what, place)) if driver is None else driver
                cleanup.callback(self._driver.close)
                _check_chip(plan.sm, self._driver.sm, what)
                self._stream = keep(cleanup, self._driver.stream(), self._driver.drop_stream)
                # before the free memory is read, of which NCCL takes some
                self._communicator = _communicator(plan, peers, self._driver, nccl, what)
                if self._communicator is not None:
                    cleanup.callback(self._communicator.abort)  # after a failure; close() leaves in order
            with self._timed("plan"):
                placement = contents.placement(plan)
                most = max(slots, contents.max_batch)
                free, _ = self._driver.memory()
                self._plan, self.budget = fitted(
                    plan, weights=placement.bytes, slots=slots, state_slots=most, free=free, what=what
                )
                self.blocks = self.budget.blocks
            with self._timed("kernels"):
                modules = Modules(self._driver, contents, cleanup)
                self._kernels = modules.kernels(plan)
                self.notes = modules.notes
            with self._timed("memory"):
                weights, self._allocated = self._allocate(self.budget, placement, most, cleanup)
                self._wait = self._driver.wait_event if self._communicator is None else self._communicator.wait
                self._ring = Ring(
                    *(self._driver, self.budget.inputs, cleanup), slots=SLOTS + plan.rank.pp - 1, wait=self._wait
                )
            with self._timed("weights"):
                contents.fill(placement, weights, self._driver, progress)
                self._set_up()
                self._driver.wait(self._stream)
            self._idle = keep(cleanup, self._driver.event(), self._driver.drop_event)
            self._captured = cleanup.enter_context(ExitStack())
            self._cleanup = cleanup.pop_all()

    def run(
        self, program: int, sizes: Mapping[str, int], inputs: Mapping[str, np.ndarray], wanted: Collection[str]
    ) -> int:
        """Queue a step after the earlier ones; returns its number, for `read`."""
        driver = self._driver
        driver.use()
        bound = self._bound_program(program, sizes)
        replayed = self._replays and self._plan.programs[program].decode
        graph = self._graph(program, bound) if replayed else None
        step, slot = self._ring.next()
        self._copy_inputs(bound, inputs, slot)
        if graph is not None:
            driver.launch_graph(graph, self._stream)
        elif self._times:
            self._launch_timed(bound)
        else:
            self._launch(bound)
        self._copy_results(bound, wanted, slot)
        driver.record(slot.done, self._stream)
        return step

    def read(self, handle: int) -> Mapping[str, np.ndarray]:
        """Wait for a step; the caller owns the arrays."""
        self._driver.use()
        return self._ring.read(handle)

    def close(self) -> None:
        """Free everything, even after an unrecoverable GPU error, or one of another rank."""
        with suppress(LlmcError):
            self._driver.use()
            if self._communicator is None:
                self._driver.wait(self._stream)
            else:
                self._driver.record(self._idle, self._stream)
                self._communicator.wait(self._idle)
                self._captured.close()  # before the communicators that their exchanges use
                self._communicator.close()
        with suppress(LlmcError):
            self._cleanup.close()

    def abort(self) -> None:
        """End the exchanges with other ranks that the GPU is doing, so that `read` fails; any thread may call it."""
        if self._communicator is not None:
            self._communicator.abort()

    def _allocate(self, parts: Budget, placement: Placement, slots: int, cleanup: ExitStack) -> tuple[int, Allocations]:
        """Allocate all device memory of this plan; fill caches and state with zeros."""

        def allocate(nbytes: int, what: str) -> int:
            return keep(cleanup, self._driver.allocate(aligned(nbytes), what), self._driver.free) if nbytes else 0

        weights = allocate(parts.weights, "weights")
        tensors = {name: weights + offset for name, offset in placement.offsets.items()}
        for kind, sizes in (("cache", parts.blocks), ("state", {"slots": slots})):
            offsets, nbytes = packed(tensors_of(self._plan, kind, sizes))
            if nbytes:
                base = allocate(nbytes, kind)
                self._driver.fill(base, 0, nbytes, self._stream)
                tensors |= {name: base + offset for name, offset in offsets.items()}
        allocated = Allocations(
            arena=allocate(parts.arena, "activations"),
            arena_bytes=parts.arena,
            inputs=allocate(parts.inputs, "inputs"),
            scratch=(allocate(parts.scratch[0], "scratch"), allocate(parts.scratch[1], "profiler scratch")),
            scratch_bytes=parts.scratch,
            tensors=tensors,
        )
        return weights, allocated

    def _set_up(self) -> None:
        """Compute the state that follows from the weights."""
        setup = self._plan.setup
        if setup is not None:
            bound = bind(self._plan, setup, setup.limits, self._allocated, self._kernels, self._driver, self._stream)
            self._launch(bound)

    def _bound_program(self, program: int, sizes: Mapping[str, int]) -> BoundProgram:
        key = program, (sizes["tokens"], sizes["sequences"], sizes["rows"])
        found = self._bounds.get(key)
        if found is None:
            chosen = self._plan.programs[program]
            if any(sizes[name] > limit for name, limit in chosen.limits.items()):
                raise EngineError(f"expected a step of at most {chosen.limits}", found=f"{dict(sizes)}")
            if chosen.decode and self._replays and dict(sizes) != chosen.limits:
                raise EngineError(f"expected a decode step of {chosen.limits}", found=f"{dict(sizes)}")
            mixed = [one for one in self._bounds if not self._plan.programs[one[0]].decode]
            if len(mixed) >= _MAX_MIXED:
                del self._bounds[mixed[0]]
            found = bind(self._plan, chosen, sizes, self._allocated, self._kernels, self._driver, self._stream)
            self._bounds[key] = found
        return found

    def _graph(self, program: int, bound: BoundProgram) -> Any:
        """The program's launches as one graph, captured at first use; copies of inputs and results are outside it."""
        if program not in self._graphs:
            with self._timed("capture"):
                graph = self._driver.captured(self._stream, lambda: self._launch(bound))
            self._graphs[program] = keep(self._captured, graph, self._driver.drop_graph)
        return self._graphs[program]

    def _launch(self, bound: BoundProgram) -> None:
        for one in bound.launches:
            self._give(one)

    def _give(self, one: BoundLaunch | BoundCollective) -> None:
        if isinstance(one, BoundLaunch):
            self._driver.launch(one.config, one.function, one.parameters.address, one.label)
        else:
            assert self._communicator is not None, "a plan of one rank has no exchange"
            self._communicator.run(one, self._stream)

    def _launch_timed(self, bound: BoundProgram) -> None:
        """Each launch alone between two events: its own time, without what launches in a row gain."""
        driver = self._driver
        with ExitStack() as cleanup:
            start, stop = (keep(cleanup, driver.event(timing=True), driver.drop_event) for _ in range(2))
            for one in bound.launches:
                driver.record(start, self._stream)
                self._give(one)
                driver.record(stop, self._stream)
                self._wait(stop)
                debug(3, f"{one.label}: {1e3 * driver.elapsed(start, stop):.4f} ms")

    def _copy_inputs(self, bound: BoundProgram, inputs: Mapping[str, np.ndarray], slot: RingEntry) -> None:
        packed_inputs = slot.inputs.view(bound.input_bytes)
        for name, span in bound.inputs.items():
            array = inputs[name]
            if array.dtype != span.dtype or array.shape != span.shape:
                found = f"{array.dtype} {list(array.shape)}"
                raise EngineError(f"expected input {name!r} as {span.dtype} {list(span.shape)}", found=found)
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            packed_inputs[span.at : span.at + span.nbytes] = flat
        if bound.input_bytes:
            self._driver.copy_in(self._allocated.inputs, slot.inputs.address, bound.input_bytes, self._stream)

    def _copy_results(self, bound: BoundProgram, wanted: Collection[str], slot: RingEntry) -> None:
        spans = {name: bound.buffers[name] for name in sorted(wanted)}
        offsets, nbytes = packed({name: span.nbytes for name, span in spans.items()})
        slot.results.view(nbytes)
        for name, span in spans.items():
            if span.nbytes:
                self._driver.copy_out(slot.results.address + offsets[name], span.at, span.nbytes, self._stream)
        slot.outputs = {name: (offsets[name], span) for name, span in spans.items()}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[part] = time.perf_counter() - start


def _communicator(plan: Plan, peers: Peers | None, driver: Driver, nccl: Nccl | None, what: str) -> Communicator | None:
    if plan.rank_of is None:
        return None
    if peers is None:
        raise EngineError(f"cannot run {what} alone", found=f"rank {plan.rank.number} of {plan.rank.tp * plan.rank.pp}")
    return Communicator(plan.rank_of, peers, driver, Nccl.load() if nccl is None else nccl)


def _choose_gpu(sm: int, what: str, place: int) -> int:
    """The ordinal of the GPU with this place among those that can run machine code of `sm`."""
    found = gpus.detect()
    if not found.gpus:
        raise ResourceError(
            f"expected an NVIDIA GPU for {what}", found=found.problem, fix="llmc doctor, or --profile cpu"
        )
    able = [gpu for gpu in found.gpus if runs_on(sm, gpu.sm)]
    if not able:
        _check_chip(sm, found.gpus[0].sm, what)
    if place >= len(able):
        raise ResourceError(
            f"expected {place + 1} GPUs for the ranks on this machine, of which {what} is one",
            found=f"{len(able)} of compute capability {capability(sm)}",
            fix="fewer ranks on this machine, each of which takes a GPU",
        )
    return able[place].ordinal


def _check_chip(sm: int, chip: int, what: str) -> None:
    if not runs_on(sm, chip):
        raise ResourceError(
            f"expected a GPU of compute capability {capability(sm)} for {what}",
            found=capability(chip),
            fix=f"an engine built with --target {target_for(chip) or 'cpu'}",
        )
