"""The time of one step of one stage: a roofline per launch, collectives by their link, gaps between launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ...passes.placement import Span
from ...runtime.chips import Chip
from ...runtime.plan.formula import value
from ...runtime.plan.price import seen_of
from .pieces import Pieces, Work
from .rates import Rates

_PRODUCTS = ("linear_large", "linear_small", "linear_fp8", "linear_fp4", "moe_linear")


class Exchange(Protocol):
    """The seconds of a collective that moves a value of so many bytes, of all shards together."""

    def __call__(self, collective: str, exchanged: int) -> float: ...


@dataclass(frozen=True)
class Cost:
    """Seconds of a step by what bounds them."""

    memory: float = 0.0
    compute: float = 0.0
    link: float = 0.0
    launches: float = 0.0
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return self.memory + self.compute + self.link + self.launches + self.host

    def times(self, factor: float) -> Cost:
        return Cost(*(factor * part for part in self._parts))

    def plus(self, other: Cost) -> Cost:
        return Cost(*map(float.__add__, self._parts, other._parts))

    @property
    def _parts(self) -> tuple[float, ...]:
        return self.memory, self.compute, self.link, self.launches, self.host


@dataclass(frozen=True)
class Step:
    """A step of a stage: sequences that each get a token, and tokens of prompts."""

    sequences: int
    context: int
    """Positions before the step, of each of these sequences."""
    prompt: int = 0
    """Tokens of prompts; 0: a decode step."""
    prompts: int = 0
    """Prompts that they belong to."""
    before: int = 0
    """Positions before each token of a prompt, on average."""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of `runtime/plan/formula.py`; logits are computed of the last token of each sequence."""
        sequences = self.sequences + self.prompts
        return {"tokens": self.sequences + self.prompt, "sequences": sequences, "rows": sequences}


@lru_cache(1 << 16)  # most launches are those of other formats too, and so are the steps
def _value(formula: str, sizes: tuple[tuple[str, int], ...]) -> int:
    return value(formula, dict(sizes))


class _Launches:
    """The launches of a program of some pieces as arrays: each kind of launch is priced once for all blocks."""

    def __init__(self, pieces: Pieces, program: int, chip: Chip, rates: Rates) -> None:
        work = {name: block.work[program] for name, block in pieces.blocks.items()}
        kinds = list(dict.fromkeys(one for found in work.values() for one in found))
        self.kinds = [one for one in kinds if one.exchanged is None]
        self.exchanges = [one for one in kinds if one.exchanged is not None]
        self.counts, self.exchange_counts = (
            np.array([[found[one] for one in some] for found in work.values()], float).reshape(len(work), -1)
            for some in (self.kinds, self.exchanges)
        )
        self._peaks = np.array([_peak(one, chip, rates) for one in self.kinds])
        self._bandwidth = chip.bandwidth * rates.memory
        self._gap = rates.launch

    def seconds(self, step: Step) -> np.ndarray:
        """Seconds of memory, computing and gaps: f64 [3, launches]."""
        sizes = tuple(step.sizes.items())
        moved = np.array([_value(one.bytes, sizes) for one in self.kinds], float) / self._bandwidth
        computed = np.array([_value(one.operations, sizes) for one in self.kinds], float) / self._peaks
        both, bound = np.hypot(moved, computed), moved >= computed
        return np.stack([np.where(bound, both, 0.0), np.where(bound, 0.0, both), np.full(len(both), self._gap)])


def _peak(work: Work, chip: Chip, rates: Rates) -> float:
    """Operations/s that a launch reaches."""
    share = rates.product if work.kernel in _PRODUCTS else rates.attention
    return share * chip.narrow_rates.get(work.kernel, chip.bf16)


class Clock:
    """Prices steps of some pieces on one chip.

    Reading and computing of a launch overlap but for a part: together they take the root of the sum of their squares.
    Their sum and the larger alone are the ends; near the ridge of the roofline neither is seen in practice.
    """

    def __init__(self, pieces: Pieces, chip: Chip, rates: Rates) -> None:
        self._pieces, self._chip, self._rates = pieces, chip, rates
        self._launches = [_Launches(pieces, program, chip, rates) for program in range(len(pieces.plans[0].programs))]
        self._blocks: dict[tuple[int, Step], np.ndarray] = {}
        self._counts: dict[Span, np.ndarray] = {}

    def stage(self, stage: Span, program: int, step: Step, exchange: Exchange) -> Cost:
        """The cost of a step of a stage of the model."""
        launches = self._launches[program]
        counts = self._stage_counts(stage)
        memory, compute, gaps = (self._block_seconds(program, step) @ counts).tolist()
        link = 0.0
        for work, times in zip(launches.exchanges, (counts @ launches.exchange_counts).tolist(), strict=True):
            if times:
                link += times * exchange(work.kernel, value(work.exchanged or 0, step.sizes))
        read, computed = self._attention(stage, step)
        return Cost(memory + read, compute + computed, link, gaps)

    def _block_seconds(self, program: int, step: Step) -> np.ndarray:
        """Of each block: f64 [3, blocks]."""
        key = program, step
        if key not in self._blocks:
            launches = self._launches[program]
            self._blocks[key] = launches.seconds(step) @ launches.counts.T
        return self._blocks[key]

    def _stage_counts(self, stage: Span) -> np.ndarray:
        if stage not in self._counts:
            found = self._pieces.skeleton.blocks(stage)
            self._counts[stage] = np.array([found.get(name, 0) for name in self._pieces.blocks], float)
        return self._counts[stage]

    def _attention(self, stage: Span, step: Step) -> tuple[float, float]:
        """Seconds of memory and of computing for positions before the step, which depend on the context."""
        read = decoded = prompted = 0
        for kind, cached in self._pieces.caches(stage).items():
            seen, before = seen_of(kind, step.context), seen_of(kind, step.before)
            read += cached.position * (seen * step.sequences + before * step.prompts)
            decoded += cached.operations * seen * step.sequences
            prompted += cached.operations * before * step.prompt
        peak = self._chip.bf16 * self._rates.attention
        moved, computed = read / (self._chip.bandwidth * self._rates.cache), decoded / peak
        both = math.hypot(moved, computed)
        return (both, prompted / peak) if moved >= computed else (0.0, both + prompted / peak)


def total(costs: Sequence[Cost]) -> Cost:
    """The sum of costs."""
    return Cost(*map(sum, zip(*(vars(cost).values() for cost in costs), strict=True)))
