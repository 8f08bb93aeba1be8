"""The cpu executor: runs an engine's ONNX graph on ONNX Runtime, with weights mapped from the file and caches in place.

A call is one sequence with many new tokens or many sequences with one each, so calls have no padding. A sequence has a
block, which is a slot of the cache; sequences that decode together have the slots [0, n), bound as one view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import environment
from ..engine_file.bind import WEIGHTS_LOCATION
from ..engine_file.file import EngineFile
from ..engine_file.manifest import LayerCache
from ..engine_file.rope import LengthRope, table_of
from ..errors import EngineError, RecipeError
from ..guard.shortage import shortage
from ..machine import cpu_count, system_memory
from ..progress import timed
from ..scheduling.executor import MAX_ROWS, CacheKind, Output, Samplers, ScheduledSequence, sequence_count
from .kernel_times import measure, tell
from .onnx_scan import scan
from .pool import SlotPool
from .rotary import CallTables, check_tables
from .slots import PARTS, SlotCaches, lengths_name
from .weights import bindings, check_memory, weight_values, weights_as_inputs

MAX_PREFILL = 512
"""Most tokens per prefill call: limits its activations, and how long decoding requests wait for it."""

_AGAIN = "build the engine again"


class CpuExecutor:
    """A loaded cpu profile (`executor.Executor`): one block is a slot of max_context positions, depth 0, not mixed.

    It owns the engine file.
    """

    mixed = False
    depth = 0

    def __init__(self, engine: EngineFile, profile: str, *, threads: int | None, max_batch: int | None) -> None:
        """Bind the weights and create the session; memory of caches is taken as requests come.

        Raises:
            EngineError: the graph, a binding or a number of the profile is invalid.
            RecipeError: `threads` or `max_batch` is not a positive whole number.
            ResourceError: the machine has too little memory for the weights.
        """
        self._engine = engine
        facts, model = engine.manifest.profiles[profile], engine.manifest.model
        self.max_context = self.block_tokens = facts.max_context
        self.notes: tuple[str, ...] = ()
        self.sequences = sequence_count(max_batch, facts.max_batch)
        self.caches = (CacheKind(self.sequences),)
        self.vocab = model.vocab_size
        self.max_prefill = min(MAX_PREFILL, facts.max_context, *model.windows)
        self.max_rows = MAX_ROWS
        weights = bindings(engine.path, facts.weights)
        check_memory(engine, weights, facts.needs)
        as_inputs = weights_as_inputs(engine.path, weights, facts.needs)
        self._weights = weight_values(engine, weights)
        constants = {name: value for name, value in self._weights.items() if name not in as_inputs}
        self._as_inputs = {name: self._weights[name] for name in as_inputs}
        self._session = _session(engine, facts.graph, constants, thread_count(threads))
        _check_inputs(self._session, str(engine.path), model.caches, model.windows, model.vocab_size)
        declared = {value.name: value.shape for value in self._session.get_inputs()}
        check_tables(declared, model.ropes or (), str(engine.path))
        engine.drop_pages()  # packed weights are copies, so their mapped pages are no longer read
        self._cache = SlotCaches(model.caches, facts.max_context)
        self._ropes = model.ropes or ()
        self._samplers = Samplers()
        self._running: dict[int, int] = {}
        """The block of each sequence in progress."""
        self._decoding: dict[int, _Call] = {}
        self._bound = self._cache.arrays
        """The buffers that these calls are bound to."""

    def table_of(self, length: int) -> int:
        return table_of(self._ropes, length)

    def pool(self) -> SlotPool:
        return SlotPool(self._cache, self.sequences, lambda: system_memory().available)

    def submit(self, step: tuple[ScheduledSequence, ...]) -> tuple[Output, ...]:
        """Run the step synchronously; the ticket is its result."""
        if len(step) == 1 and (step[0].is_prompt or len(step[0].tokens) != 1):
            return (self._prefill(step[0]),)
        return self._decode(step)

    def collect(self, ticket: tuple[Output, ...]) -> tuple[Output, ...]:
        return ticket

    def release(self, sequence: int) -> None:
        """Forget the sequence; its block keeps what it holds."""
        self._samplers.release(sequence)
        self._running.pop(sequence, None)

    def close(self) -> None:
        self._decoding.clear()
        self._cache.clear()
        if self._session is not None:
            tell(self._session)
        self._session = None
        self._weights, self._as_inputs = {}, {}
        self._engine.close()

    def _prefill(self, scheduled: ScheduledSequence) -> Output:
        slot = self._cache.slot(self._begun(scheduled))
        tokens = np.array(scheduled.tokens, np.int64)
        count = (
            len(tokens) if scheduled.rows == "all" else int(scheduled.sample is not None or scheduled.rows == "last")
        )
        rows = np.arange(len(tokens) - max(count, 1), len(tokens), dtype=np.int64)
        call = self._call(slice(slot, slot + 1), len(tokens), len(rows))
        call.ids[0], call.rows[:] = tokens, rows
        call.tables.fill([0], [scheduled])
        call.run()
        return self._samplers.output(scheduled, call.logits if count else None)

    def _decode(self, step: tuple[ScheduledSequence, ...]) -> tuple[Output, ...]:
        blocks = [self._begun(scheduled) for scheduled in step]
        self._cache.move_to_front(blocks)
        if self._bound is not self._cache.arrays:
            self._decoding, self._bound = {}, self._cache.arrays
        count = len(step)
        call = self._decoding.get(count)
        if call is None:
            call = self._decoding[count] = self._call(slice(0, count), 1, count)
            call.rows[:] = np.arange(count)
        slots = [self._cache.slot(block) for block in blocks]
        call.ids[slots, 0] = [scheduled.tokens[0] for scheduled in step]
        call.tables.fill(slots, step)
        call.run()
        rows = [call.logits[slot : slot + 1] for slot in slots]
        return tuple(
            self._samplers.output(scheduled, row if scheduled.rows == "none" else row.copy())
            for scheduled, row in zip(step, rows, strict=True)
        )

    def _call(self, slots: slice, tokens: int, rows: int) -> _Call:
        logits = np.empty((rows, self.vocab), np.float32)
        return _Call(self._session, self._as_inputs, self._cache, slots, tokens, logits, self._ropes)

    def _begun(self, scheduled: ScheduledSequence) -> int:
        """The sequence's block, with room for its new tokens; before its first step it is cut to the cached tokens."""
        block = self._running.get(scheduled.sequence)
        new = block is None
        if block is None:
            if len(self._running) == self.sequences:
                found = f"room for {self.sequences}"
                raise RecipeError(f"cannot run {self.sequences + 1} sequences at once", found=found)
            block = self._running[scheduled.sequence] = scheduled.blocks[0][0]
        self._cache.commit(block, scheduled.end)
        if new:
            self._cache.cut(block, len(scheduled.cached))
        return block


class _Call:
    """Inputs, outputs and caches of one call shape, bound once, so that a decode step only writes its numbers."""

    def __init__(
        self,
        session: Any,
        as_inputs: Mapping[str, Any],
        cache: SlotCaches,
        slots: slice,
        tokens: int,
        logits: np.ndarray,
        ropes: Sequence[LengthRope],
    ) -> None:
        batch = slots.stop - slots.start
        self.ids = np.zeros((batch, tokens), np.int64)
        self.rows = np.zeros(len(logits), np.int64)
        self.logits = logits
        self._session, self._cache, self._slots, self._tokens = session, cache, slots, tokens
        self._label = f"a step of {tokens} tokens of each of {batch} sequences"
        self._binding = session.io_binding()
        lengths = {name: array[slots] for name, array in cache.lengths.items()}
        self.tables = CallTables(ropes, batch, tokens)
        inputs = {"input_ids": self.ids, "logits_indices": self.rows, **lengths, **self.tables.inputs}
        for name, array in inputs.items():
            self._bind(self._binding.bind_input, name, array)
        self._bind(self._binding.bind_output, "logits", self.logits)
        for name, array in cache.arrays.items():
            self._bind(self._binding.bind_input, f"past.{name}", array[slots])
            self._bind(self._binding.bind_output, f"present.{name}", array[slots])
        for name, value in as_inputs.items():
            _checked(name, self._binding.bind_ortvalue_input, name, value)

    @staticmethod
    def _bind(bind: Any, name: str, array: np.ndarray) -> None:
        _checked(name, bind, name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Compute.

        Raises:
            EngineError: ONNX Runtime fails, for example on a forged graph.
        """
        self._cache.make_room(self._slots, self._tokens)
        try:
            with timed(3, self._label):
                self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions share no other base class
            asked = "cannot run the engine's graph"
            raise shortage(error, asked) or EngineError(asked, found=_reason(error), fix=_AGAIN) from error
        self._cache.advance(self._slots, self._tokens)


def _checked(name: str, bind: Any, *arguments: Any) -> None:
    try:
        bind(*arguments)
    except RuntimeError as error:
        asked = f"expected a graph with input or output {name!r}"
        raise shortage(error) or EngineError(asked, found=_reason(error), fix=_AGAIN) from error


def _reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without the stack that may follow."""
    return str(error).splitlines()[0][:500] if str(error) else type(error).__name__


def thread_count(asked: int | None) -> int:
    """Threads to compute with: `asked`, else LLMC_THREADS, else the CPUs available to this process."""
    return environment.threads(asked) or cpu_count()


def _check_inputs(session: Any, path: str, layers: Sequence[LayerCache], windows: Sequence[int], vocab: int) -> None:
    """Check that the graph declares the buffers that will be bound; their sizes come from the manifest."""
    declared = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    caches = {name: (shape[1], shape[3]) for name, shape in declared.items() if len(shape) == 4}
    lengths = {name for name in declared if "_lengths" in name}
    expected = {
        f"{way}.{i}.{part}": (layer.kv_heads, layer.head_dim)
        for i, layer in enumerate(layers)
        for way in ("past", "present")
        for part in PARTS
    }
    wanted = set(map(lengths_name, (None, *windows)))
    logits = declared.get("logits", [])
    if caches != expected or lengths != wanted or logits[-1:] != [vocab]:
        asked, found = (
            f"{len(shapes) // 4} layers, caches {sorted(set(shapes.values()), key=str)}, {', '.join(sorted(names))}"
            for shapes, names in ((expected, wanted), (caches, lengths))
        )
        found = f"{found}, logits {logits}"
        raise EngineError(f"expected a graph of {asked}, {vocab} logits in {path}", found=found, fix=_AGAIN)


def _session(engine: EngineFile, section: str, constants: Mapping[str, Any], threads: int) -> Any:
    """The session. It copies the weights that it packs, and may read others in our buffers."""
    from .ort import onnxruntime as ort

    graph = engine.section(section)
    scan(graph, what=f"{section} of {engine.path}", external=WEIGHTS_LOCATION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # only what ends the process: all else is raised, and names are not printed raw
    measure(options)
    options.add_external_initializers(list(constants), list(constants.values()))
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        asked = f"cannot load {section!r} of {engine.path}"
        raise shortage(error, asked) or EngineError(asked, found=_reason(error), fix=_AGAIN) from error
