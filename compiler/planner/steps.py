"""The time of one step of one stage: a roofline per launch, collectives by their link, gaps between launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ...passes.placement import Span
from ...runtime.chips import Chip
from ...runtime.plan.formula import value
from ...runtime.plan.price import seen_of
from .pieces import Pieces, Work
from .rates import Rates

MEMORY, COMPUTE, LINK, LAUNCHES, HOST, BUBBLE = "memory", "compute", "link", "launches", "host", "bubble"
"""What a part of a step's time is bound by; `bubble`: a stage that waits for another."""
_FP8_PRODUCT = "linear_fp8"
"""The kernel that multiplies E4M3; all others multiply 16-bit numbers."""
_PRODUCTS = ("linear_large", "linear_small", _FP8_PRODUCT)
_PROMPT_ATTENTION = "attention_prefill"


class Exchange(Protocol):
    """The seconds of a collective that moves a value of so many bytes, of all shards together."""

    def __call__(self, collective: str, exchanged: int) -> float: ...


@dataclass(frozen=True)
class Cost:
    """Seconds by what bounds them."""

    memory: float = 0.0
    compute: float = 0.0
    link: float = 0.0
    launches: float = 0.0
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return self.memory + self.compute + self.link + self.launches + self.host

    def plus(self, other: Cost, times: float = 1.0) -> Cost:
        """With `times` the other."""
        mine, others = vars(self), vars(other)
        return Cost(**{key: mine[key] + times * others[key] for key in mine})


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


class Clock:
    """Prices steps of one set of pieces on one chip; a launch is priced once for all layers that have it."""

    def __init__(self, pieces: Pieces, chip: Chip, rates: Rates) -> None:
        self._pieces, self._chip, self._rates = pieces, chip, rates
        self._known: dict[tuple[str, int, Step], Cost] = {}
        self._launches: dict[tuple[Work, Step], Cost] = {}

    def stage(self, stage: Span, program: int, step: Step, exchange: Exchange) -> Cost:
        """The cost of a step of a stage of the model."""
        total = Cost()
        links: dict[tuple[str, int], float] = {}
        for name, count in self._pieces.skeleton.blocks(stage).items():
            total = total.plus(self._block(name, program, step), count)
            for work, times in self._pieces.blocks[name].work[program].items():
                if work.exchanged is not None:
                    moved = work.kernel, value(work.exchanged, step.sizes)
                    links[moved] = links.get(moved, 0.0) + times * count
        exchanged = sum(times * exchange(*moved) for moved, times in links.items())
        return total.plus(Cost(link=exchanged)).plus(self._attention(stage, step))

    def _block(self, name: str, program: int, step: Step) -> Cost:
        key = name, program, step
        if key not in self._known:
            total = Cost()
            for work, count in self._pieces.blocks[name].work[program].items():
                if work.exchanged is None:
                    total = total.plus(self._launch(work, step), count)
            self._known[key] = total
        return self._known[key]

    def _launch(self, work: Work, step: Step) -> Cost:
        key = work, step
        if key not in self._launches:
            sizes, chip, rates = step.sizes, self._chip, self._rates
            peak = chip.bf16 if work.kernel != _FP8_PRODUCT else chip.fp8 or chip.bf16
            share = rates.product if work.kernel in _PRODUCTS else rates.attention
            moved = value(work.bytes, sizes) / (chip.bandwidth * rates.memory)
            computed = value(work.operations, sizes) / (peak * share)
            self._launches[key] = _both(moved, computed).plus(Cost(launches=rates.launch))
        return self._launches[key]

    def _attention(self, stage: Span, step: Step) -> Cost:
        """Reads of and operations with positions before the step, which depend on the context."""
        read = decoded = prompted = 0
        for kind, cached in self._pieces.caches(stage).items():
            seen, before = seen_of(kind, step.context), seen_of(kind, step.before)
            read += cached.position * (seen * step.sequences + before * step.prompts)
            decoded += cached.operations * seen * step.sequences
            prompted += cached.operations * before * step.prompt
        peak = self._chip.bf16 * self._rates.attention
        moved = read / (self._chip.bandwidth * self._rates.cache)
        return _both(moved, decoded / peak).plus(Cost(compute=prompted / peak))


def _both(memory: float, compute: float) -> Cost:
    """Reading and computing overlap but for a part: their root of the sum of squares, bound by the larger.

    The sum of both and the larger alone are the ends; near the ridge of the roofline neither is seen in practice.
    """
    seconds = math.hypot(memory, compute)
    return Cost(memory=seconds) if memory >= compute else Cost(compute=seconds)
