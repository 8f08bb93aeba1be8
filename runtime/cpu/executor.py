"""The cpu executor: runs an engine's ONNX graphs on ONNX Runtime, with mapped weights and caches written in place.

A call is one sequence with many new tokens or many sequences with one each, so calls have no padding. A sequence has a
block, which is a slot of the cache; sequences that decode together have adjacent slots, bound as one view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import environment
from ..engine_file.bind import WEIGHTS_LOCATION
from ..engine_file.file import EngineFile
from ..engine_file.manifest import LayerCache
from ..engine_file.ranks import caches_of, split_of
from ..engine_file.rope import table_of
from ..engine_file.split import parts_of
from ..errors import EngineError, RecipeError
from ..guard.shortage import shortage
from ..machine import cpu_count, system_memory
from ..progress import debug
from ..scheduling.executor import MAX_ROWS, CacheKind, Output, Samplers, ScheduledSequence, sequence_count
from .kernel_times import measure, tell
from .onnx_scan import scan
from .pool import SlotPool
from .program import RUN, Program, Step, read_program
from .program_call import AGAIN, LOGITS, Call, Exchange, Loaded, reason
from .rotary import check_tables
from .slots import PARTS, SlotCaches, lengths_name
from .weights import bindings, check_memory, weight_values, weights_as_inputs

MAX_PREFILL = 512
"""Most tokens per prefill call: limits its activations, and how long decoding requests wait for it."""
_GRAPH = "graph.onnx"


class CpuExecutor:
    """A loaded cpu profile (`executor.Executor`): one block is a slot of max_context positions, depth 0, not mixed.

    Or one rank of a profile: then it computes its part of each step, and a rank without logits samples nothing. It owns
    the engine file.
    """

    mixed = False
    depth = 0

    def __init__(
        self,
        engine: EngineFile,
        profile: str,
        *,
        threads: int | None,
        max_batch: int | None,
        exchange: Exchange | None = None,
        neighbours: int = 1,
        samples: bool = True,
        checked: Callable[[], None] = lambda: None,
    ) -> None:
        """Bind the weights and create the sessions; memory of caches is taken as requests come.

        `profile` may be a rank's label; `exchange` is then what it computes with the other ranks, of which
        `neighbours`, itself included, share this machine's memory, and `samples` tells whether it chooses tokens.
        `checked` is called before weights take memory, when there is enough of it.

        Raises:
            EngineError: a graph, a binding or a number of the profile is invalid.
            RecipeError: `threads` or `max_batch` is not a positive whole number.
            ResourceError: the machine has too little memory for the weights.
        """
        self._engine = engine
        facts, model = engine.profile(profile), engine.manifest.model
        self.max_context = self.block_tokens = facts.max_context
        self.notes: tuple[str, ...] = ()
        self.sequences = sequence_count(max_batch, facts.max_batch)
        self.caches = (CacheKind(self.sequences),)
        self.vocab = model.vocab_size
        self.max_prefill = min(MAX_PREFILL, facts.max_context, *model.windows)
        self.max_rows = MAX_ROWS
        program, files = program_of(engine, profile)
        weights = bindings(engine.path, facts.weights)
        check_memory(engine, weights, facts.needs, neighbours)
        checked()
        as_inputs = weights_as_inputs(engine.path, weights, facts.needs)
        if facts.caches is not None:  # of a rank
            engine.expect(weights.values())
        self._weights = weight_values(engine, weights)
        constants = {name: value for name, value in self._weights.items() if name not in as_inputs}
        count = thread_count(threads)
        runs = [step for step in program.steps if step.op == RUN]
        sessions = {
            step.segment: _session(
                engine, files[step.segment], _own(step, constants, engine), count, alone=len(runs) == 1
            )
            for step in runs
        }
        layers = caches_of(facts, model)
        declared = {
            value.name: value.shape
            for session in sessions.values()
            for value in (*session.get_inputs(), *session.get_outputs())
        }
        if LOGITS in program.values:
            declared.setdefault(LOGITS, [None, int(program.values[LOGITS][-1])])
        _check_inputs(declared, str(engine.path), layers, self.vocab if LOGITS in program.values else None)
        check_tables(declared, model.ropes or (), str(engine.path), some=facts.caches is not None)
        engine.drop_pages()  # packed weights are copies, so their mapped pages are no longer read
        self.slots = SlotCaches(layers, facts.max_context, model.windows)
        self._ropes = model.ropes or ()
        self._loaded = Loaded(
            program, sessions, {name: self._weights[name] for name in as_inputs}, self._ropes, exchange
        )
        self._samplers = Samplers() if samples and LOGITS in program.values else None
        self._running: dict[int, int] = {}
        """The block of each sequence in progress."""
        self._decoding: dict[tuple[int, int], Call] = {}
        self._bound = self.slots.arrays
        """The buffers that these calls are bound to."""
        self.exchange_s = 0.0
        """Seconds of all steps in collectives."""

    def table_of(self, length: int) -> int:
        return table_of(self._ropes, length)

    def pool(self) -> SlotPool:
        return SlotPool(self.slots, self.sequences, lambda: system_memory().available)

    def submit(self, step: tuple[ScheduledSequence, ...]) -> tuple[Output, ...]:
        """Run the step synchronously; the ticket is its result."""
        if len(step) == 1 and (step[0].is_prompt or len(step[0].tokens) != 1):
            return (self._prefill(step[0]),)
        return self._decode(step)

    def collect(self, ticket: tuple[Output, ...]) -> tuple[Output, ...]:
        return ticket

    def release(self, sequence: int) -> None:
        """Forget the sequence; its block keeps what it holds."""
        if self._samplers is not None:
            self._samplers.release(sequence)
        self._running.pop(sequence, None)

    def close(self) -> None:
        self._decoding.clear()
        self.slots.clear()
        if self._loaded is not None:
            tell(self._loaded.sessions.values())
            if self._loaded.exchange is not None:
                debug(3, f"exchange with other ranks, waits included: {1e3 * self.exchange_s:.3f} ms")
        self._loaded = None
        self._weights = {}
        self._engine.close()

    def _prefill(self, scheduled: ScheduledSequence) -> Output:
        slot = self.slots.slot(self._begun(scheduled))
        tokens = np.array(scheduled.tokens, np.int64)
        count = (
            len(tokens) if scheduled.rows == "all" else int(scheduled.sample is not None or scheduled.rows == "last")
        )
        rows = np.arange(len(tokens) - max(count, 1), len(tokens), dtype=np.int64)
        call = self._call(slice(slot, slot + 1), len(tokens), len(rows))
        call.ids[0], call.rows[:] = tokens, rows
        call.tables.fill([0], [scheduled])
        self._run(call)
        return self._output(scheduled, call.logits if count else None)

    def _decode(self, step: tuple[ScheduledSequence, ...]) -> tuple[Output, ...]:
        blocks = [self._begun(scheduled) for scheduled in step]
        together = self.slots.together(blocks)
        if self._bound is not self.slots.arrays:
            self._decoding, self._bound = {}, self.slots.arrays
        first, count = together.start, len(step)
        call = self._decoding.get((first, count))
        if call is None:
            call = self._decoding[first, count] = self._call(together, 1, count)
            call.rows[:] = np.arange(count)
        slots = [self.slots.slot(block) - first for block in blocks]
        call.ids[slots, 0] = [scheduled.tokens[0] for scheduled in step]
        call.tables.fill(slots, step)
        self._run(call)
        rows = [call.logits[slot : slot + 1] for slot in slots]
        return tuple(
            self._output(scheduled, row if scheduled.rows == "none" else row.copy())
            for scheduled, row in zip(step, rows, strict=True)
        )

    def _output(self, scheduled: ScheduledSequence, logits: np.ndarray | None) -> Output:
        return Output() if self._samplers is None else self._samplers.output(scheduled, logits)

    def _call(self, slots: slice, tokens: int, rows: int) -> Call:
        assert self._loaded is not None, "a closed executor runs nothing"
        return Call(self._loaded, self.slots, slots, tokens, rows)

    def _run(self, call: Call) -> None:
        before = call.exchange_s
        call.run()
        self.exchange_s += call.exchange_s - before

    def _begun(self, scheduled: ScheduledSequence) -> int:
        """The sequence's block, with room for its new tokens; before its first step it is cut to the cached tokens."""
        block = self._running.get(scheduled.sequence)
        new = block is None
        if block is None:
            if len(self._running) == self.sequences:
                found = f"room for {self.sequences}"
                raise RecipeError(f"cannot run {self.sequences + 1} sequences at once", found=found)
            block = self._running[scheduled.sequence] = scheduled.blocks[0][0]
        self.slots.commit(block, scheduled.end)
        if new:
            self.slots.cut(block, len(scheduled.cached))
        return block


def thread_count(asked: int | None) -> int:
    """Threads to compute with: `asked`, else LLMC_THREADS, else the CPUs available to this process."""
    return environment.threads(asked) or cpu_count()


def program_of(engine: EngineFile, profile: str) -> tuple[Program, Mapping[str, str]]:
    """What a profile or a rank runs, and its sections by file name.

    Raises:
        EngineError: it is none of ours.
    """
    facts, model = engine.profile(profile), engine.manifest.model
    name, rank = parts_of(profile)
    if rank is None:
        program = Program({LOGITS: ("R", str(model.vocab_size))}, (Step(RUN, _GRAPH, outputs=(LOGITS,)),))
        return program, {_GRAPH: facts.graph}
    files = facts.files or {}
    split = split_of(engine.profile(name), str(engine.path))
    return read_program(engine.section(facts.graph), split, rank, files, f"{facts.graph} of {engine.path}"), files


def _own(step: Step, constants: Mapping[str, Any], engine: EngineFile) -> Mapping[str, Any]:
    """The initializers of a segment; a program of one segment has all."""
    if step.segment == _GRAPH:
        return constants
    if missing := [name for name in step.weights if name not in constants]:
        asked = f"expected weights of {step.segment} in {engine.path}"
        raise EngineError(asked, found=f"no weight {missing[0]!r}", fix=AGAIN)
    return {name: constants[name] for name in step.weights}


def _check_inputs(declared: Mapping[str, Any], path: str, layers: Mapping[int, LayerCache], vocab: int | None) -> None:
    """Check that the graphs declare the buffers that will be bound; their sizes come from the manifest."""
    caches = {name: (shape[1], shape[3]) for name, shape in declared.items() if len(shape) == 4}
    lengths = {name for name in declared if "_lengths" in name}
    expected = {
        f"{way}.{i}.{part}": (layer.kv_heads, layer.head_dim)
        for i, layer in layers.items()
        for way in ("past", "present")
        for part in PARTS
    }
    wanted = set(map(lengths_name, (None, *(layer.window for layer in layers.values()))))
    logits = declared.get(LOGITS, [None])
    if caches != expected or logits[-1] != vocab or not wanted - {lengths_name(None)} <= lengths <= wanted:
        asked, found = (
            f"{len(shapes) // 4} layers, caches {sorted(set(shapes.values()), key=str)}, {', '.join(sorted(names))}"
            for shapes, names in ((expected, wanted), (caches, lengths))
        )
        found = f"{found}, logits {logits}"
        raise EngineError(f"expected a graph of {asked}, {vocab} logits in {path}", found=found, fix=AGAIN)


def _session(engine: EngineFile, section: str, constants: Mapping[str, Any], threads: int, *, alone: bool) -> Any:
    """The session. It copies the weights that it packs, and may read others in our buffers; `alone`: no other runs."""
    from .ort import onnxruntime as ort

    graph = engine.section(section)
    scan(graph, what=f"{section} of {engine.path}", external=WEIGHTS_LOCATION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not alone:  # threads that still spin after a segment would take the cores from those of the next one
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # only what ends the process: all else is raised, and names are not printed raw
    measure(options)
    options.add_external_initializers(list(constants), list(constants.values()))
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        asked = f"cannot load {section!r} of {engine.path}"
        raise shortage(error, asked) or EngineError(asked, found=reason(error), fix=AGAIN) from error
