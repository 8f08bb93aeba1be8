"""Measures how fast this CPU runs the kernels of cpu profiles: half a minute, at most 0.7 GB of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

import numpy as np

from ..errors import DISTRIBUTION
from ..machine import cpu_name, read_bandwidth
from ..sampling.params import SamplingParams
from ..scheduling.executor import CacheKind, Lease, Output, Samplers, ScheduledSequence
from ..scheduling.request import Request
from ..scheduling.scheduler import Scheduler
from . import chains
from .facts import TOKENS, CpuFacts, ProductFacts

LAYOUTS = ((4, 32), (4, 128), (8, 16), (8, 32), (8, 128), (32, 0))
"""Bits and block of every layout that cpu profiles have (`compiler/targets/cpu/nbits.py`); the last is float32."""
_ROWS, _COLUMNS = 8192, 2048
_COUNT = 8
"""Products in a chain: 134 M weights, 75 MB or more, which no core's share of a cache holds."""
_SMALL = 64
_MANY = 256
"""Tokens of a step in which elements and attention are bound by their numbers."""
_REPEAT = 5
Advance = Callable[[int], None]
VISITS = 2
"""Times that each layout is measured, far apart."""
STEPS = VISITS * len(LAYOUTS) + 4
"""How often `measure` advances."""


def measure(threads: int, advance: Advance = lambda _: None) -> CpuFacts:
    """The facts of this CPU with so many threads, without those of builds; `advance` receives 1 after each step."""
    visits: list[list[ProductFacts]] = []
    for _ in range(VISITS):
        visits.append([])
        for bits, block in LAYOUTS:
            visits[-1].append(product_facts(bits, block, threads))
            advance(1)
    start = product_start(threads)
    advance(1)
    node_s, element_s = element_facts(threads)
    advance(1)
    attention_head_s, attention_byte_s, attention_operation_s = attention_facts(threads)
    advance(1)
    step_s, logit_s = host_facts()
    advance(1)
    return CpuFacts(
        llmc=version(DISTRIBUTION),
        cpu=cpu_name(),
        threads=threads,
        date=datetime.now(UTC).date().isoformat(),
        read_bytes_per_s=read_bandwidth(threads),
        products=tuple(map(fastest, zip(*visits, strict=True))),
        product_s=start,
        attention_head_s=attention_head_s,
        attention_byte_s=attention_byte_s,
        attention_operation_s=attention_operation_s,
        element_s=element_s,
        node_s=node_s,
        step_s=step_s,
        logit_s=logit_s,
    )


def product_facts(bits: int, block: int, threads: int) -> ProductFacts:
    """Speeds of products in one layout, for each of TOKENS."""
    chain = chains.products(bits, block, _ROWS, _COLUMNS, _COUNT, threads)
    times = seconds([chain.call(tokens) for tokens in TOKENS])
    return ProductFacts(bits, block, tuple(one / chain.weights for one in times))


def fastest(visits: Sequence[ProductFacts]) -> ProductFacts:
    """Of each number of tokens the fastest visit: what another process disturbed is slower."""
    columns = zip(*(one.weight_s for one in visits), strict=True)
    return replace(visits[0], weight_s=tuple(map(min, columns)))


def product_start(threads: int) -> float:
    """Seconds of a product with few weights."""
    chain = chains.products(4, 32, _SMALL, _SMALL, 32, threads)
    return seconds([chain.call(1)])[0] / chain.count


def element_facts(threads: int) -> tuple[float, dict[str, float]]:
    """Seconds of a node with nearly nothing to do, and for each number that each kind of node makes of many."""
    each = {}
    for kind, width in (("norm", _COLUMNS), ("activation", _ROWS), ("other", _ROWS)):
        chain = chains.elements(kind, width, 16, threads)
        few, many = (one / chain.count for one in seconds([chain.call(1), chain.call(_MANY)]))
        each[kind] = max(many - few, 0.0) / ((_MANY - 1) * width)
    small = chains.elements("other", _SMALL, 32, threads)
    return seconds([small.call(1)])[0] / small.count, each


def attention_facts(threads: int) -> tuple[float, float, float]:
    """Seconds for each query head with an empty cache, for each byte of it, and for each operation of many tokens."""
    few, full = 16, 1024
    chain, arrays = chains.attention(full + 1, 12, threads)

    def call(before: int, tokens: int) -> Callable[[], object]:
        once = chain.call(tokens, arrays)

        def run() -> object:
            arrays["before"][:], arrays["total"][...] = before + tokens - 1, before + tokens
            return once()

        return run

    empty, cached, many = (one / chain.count for one in seconds([call(few, 1), call(full, 1), call(0, _MANY)]))
    read = 2 * 4 * chains.KV_HEADS * chains.HEAD_DIM
    byte_s = max(cached - empty, 0.0) / ((full - few) * read)
    operations = 4 * chains.HEADS * chains.HEAD_DIM * _MANY**2
    return max(empty - few * read * byte_s, 0.0) / chains.HEADS, byte_s, many / operations


def host_facts() -> tuple[float, float]:
    """Seconds of the scheduler around a step, and for each logit of a row that is sampled."""

    def steps(vocab: int) -> float:
        executor = _NoModel(vocab)
        scheduler = Scheduler(executor)
        scheduler.add(Request((1, 2, 3), 200, SamplingParams(temperature=0.0), ignore_eos=True))
        times = []
        while not scheduler.idle:
            started = time.perf_counter()
            scheduler.step()
            times.append(time.perf_counter() - started)
        return median(times)

    small, large = steps(1 << 10), steps(1 << 17)
    logit = max(large - small, 0.0) / ((1 << 17) - (1 << 10))
    return max(small - logit * (1 << 10), 0.0), logit


def seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Medians of several rounds through all calls, after one of each that does not count."""
    rounds = []
    for _ in range(_REPEAT + 1):
        times = []
        for call in calls:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        rounds.append(times)
    return [median(column) for column in zip(*rounds[1:], strict=True)]


class _OneBlock:
    """The pool (`scheduling.executor.Pool`) of one block, which the one sequence has."""

    free = (1,)

    def take(self, prompt: Sequence[int], length: int, *, reuse: bool = True) -> Lease:
        return Lease(((0,),), 0)

    def remember(self, tokens: Sequence[int], lease: Lease) -> None:
        pass

    def give(self, tokens: Sequence[int], lease: Lease, written: int) -> None:
        pass


class _NoModel:
    """An executor (`scheduling.executor.Executor`) whose logits cost nothing: what remains is the host's work."""

    mixed, depth, block_tokens, sequences = False, 0, 1 << 10, 1
    caches = (CacheKind(1),)
    max_context, max_prefill, max_rows = 1 << 10, 1 << 10, 1
    notes: tuple[str, ...] = ()

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self._logits = np.random.default_rng(0).standard_normal((1, vocab), np.float32)
        self._samplers = Samplers()

    def table_of(self, length: int) -> int:
        return 0

    def pool(self) -> _OneBlock:
        return _OneBlock()

    def submit(self, step: tuple[ScheduledSequence, ...]) -> tuple[Output, ...]:
        return tuple(self._samplers.output(one, self._logits) for one in step)

    def collect(self, ticket: tuple[Output, ...]) -> tuple[Output, ...]:
        return ticket

    def release(self, sequence: int) -> None:
        self._samplers.release(sequence)

    def close(self) -> None:
        self._samplers = Samplers()
