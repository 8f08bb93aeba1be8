"""One shape of call of a cpu program: its segments bound once to their inputs, outputs and caches, and then run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engine_file.rope import LengthRope
from ..errors import EngineError
from ..guard.shortage import shortage
from ..progress import timed
from .program import RUN, Program, Step
from .rotary import CallTables
from .slots import SlotCaches

AGAIN = "build the engine again"
LOGITS = "logits"


class Exchange(Protocol):
    """What a program asks of the other ranks (`runtime/parallel`)."""

    def all_reduce(self, x: np.ndarray, out: np.ndarray) -> None: ...
    def all_gather(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None: ...
    def reduce_scatter(self, x: np.ndarray, axis: int, sizes: Sequence[int], out: np.ndarray) -> None: ...
    def send(self, x: np.ndarray, peer: int) -> None: ...
    def recv(self, out: np.ndarray, peer: int) -> None: ...


@dataclass(frozen=True)
class Loaded:
    """A program ready to be bound: a session for each segment."""

    program: Program
    sessions: Mapping[str, Any]
    as_inputs: Mapping[str, Any]
    """Weights that are inputs of sessions, by name."""
    ropes: Sequence[LengthRope]
    exchange: Exchange | None


class Call:
    """A call of `tokens` tokens for each of some slots, with so many rows of logits: a step only writes its numbers.

    The numbers that it leaves in `logits` ``f32 [rows, V]`` hold until the next run.
    """

    def __init__(self, loaded: Loaded, cache: SlotCaches, slots: slice, tokens: int, rows: int) -> None:
        batch = slots.stop - slots.start
        self.ids = np.zeros((batch, tokens), np.int64)
        self.rows = np.zeros(rows, np.int64)
        self.tables = CallTables(loaded.ropes, batch, tokens)
        self.exchange_s = 0.0
        """Seconds of all runs in collectives, waits for other ranks included."""
        self._loaded, self._cache, self._slots, self._tokens = loaded, cache, slots, tokens
        self._label = f"a step of {tokens} tokens of each of {batch} sequences"
        values = allocate(loaded.program, {"B": batch, "S": tokens, "R": rows})
        self._values = values
        """Sessions are bound to addresses: what passes between two segments has no other owner."""
        self.logits = values.get(LOGITS, np.empty((0, 0), np.float32))
        lengths = {name: array[slots] for name, array in cache.lengths.items()}
        arrays = {"input_ids": self.ids, "logits_indices": self.rows, **lengths, **self.tables.inputs, **values}
        ways = {
            way: {f"{way}.{name}": array[slots] for name, array in cache.arrays.items()} for way in ("past", "present")
        }
        # a later segment may read the cache that an earlier one has written
        inputs, outputs = arrays | ways["past"] | ways["present"], values | ways["present"]
        self._steps: list[tuple[Step, Any]] = []
        for step in loaded.program.steps:
            if step.op == RUN:
                session = loaded.sessions[step.segment]
                self._steps.append((step, _bound(session, inputs, outputs, loaded.as_inputs)))
            else:
                self._steps.append((step, [values[name] for name in (*step.inputs, *step.outputs)]))

    def run(self) -> None:
        """Compute.

        Raises:
            EngineError: ONNX Runtime fails, for example on a forged graph.
        """
        self._cache.make_room(self._slots, self._tokens)
        with timed(3, self._label):
            for step, bound in self._steps:
                if step.op == RUN:
                    self._run(step, bound)
                else:
                    started = time.perf_counter()
                    self._collective(step, *bound)
                    self.exchange_s += time.perf_counter() - started
        self._cache.advance(self._slots, self._tokens)

    def _run(self, step: Step, binding: Any) -> None:
        try:
            self._loaded.sessions[step.segment].run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            asked = "cannot run the engine's graph"
            raise shortage(error, asked) or EngineError(asked, found=reason(error), fix=AGAIN) from error

    def _collective(self, step: Step, *values: np.ndarray) -> None:
        ranks = self._loaded.exchange
        assert ranks is not None, "a program of one rank has no collectives"
        match step.op:
            case "AllReduce":
                ranks.all_reduce(*values)
            case "AllGather":
                ranks.all_gather(values[0], step.axis, step.sizes, values[1])
            case "ReduceScatter":
                ranks.reduce_scatter(values[0], step.axis, step.sizes, values[1])
            case "Send":
                ranks.send(values[0], step.peer)
            case "Recv":
                ranks.recv(values[0], step.peer)


def allocate(program: Program, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """An array for each value of a program; values that are not needed at the same time share memory.

    `sizes` are those of B, S and R. A value is needed from the first to the last step that names it; segments name
    theirs in `inputs` and `outputs`.
    """
    lives: dict[str, list[int]] = {}
    for number, step in enumerate(program.steps):
        for name in (*step.inputs, *step.outputs):
            lives.setdefault(name, []).append(number)
    arrays: dict[str, np.ndarray] = {}
    free: list[np.ndarray] = []
    ends: list[tuple[int, np.ndarray]] = []
    for name in sorted(lives, key=lambda one: lives[one][0]):
        shape = program.shape(name, sizes)
        count = math.prod(shape)
        free += [memory for end, memory in ends if end < lives[name][0]]
        ends = [(end, memory) for end, memory in ends if end >= lives[name][0]]
        fitting = [memory for memory in free if memory.size >= count]
        memory = min(fitting, key=len) if fitting else np.zeros(count, np.float32)
        free = [one for one in free if one is not memory]
        ends.append((lives[name][-1], memory))
        arrays[name] = memory[:count].reshape(shape)
    return arrays


def _bound(
    session: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], as_inputs: Mapping[str, Any]
) -> Any:
    binding = session.io_binding()
    for value in session.get_inputs():
        name = value.name
        if name in as_inputs:
            _checked(name, binding.bind_ortvalue_input, name, as_inputs[name])
        else:
            _bind(binding.bind_input, name, inputs)
    for value in session.get_outputs():
        _bind(binding.bind_output, value.name, outputs)
    return binding


def _bind(bind: Any, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    if name not in arrays:
        raise EngineError(
            f"expected a graph without {name!r}", found="an input or output that llmc does not know", fix=AGAIN
        )
    array = arrays[name]
    _checked(name, bind, name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _checked(name: str, bind: Any, *arguments: Any) -> None:
    try:
        bind(*arguments)
    except RuntimeError as error:
        asked = f"expected a graph with input or output {name!r}"
        raise shortage(error) or EngineError(asked, found=reason(error), fix=AGAIN) from error


def reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without the stack that may follow."""
    return str(error).splitlines()[0][:500] if str(error) else type(error).__name__
