"""What a deployment does under a steady load: time per token, time to the first token, throughput, and their bound.

As many requests run at once as the load says; each that ends is followed by the next one. Prompts are read in steps
that also decode, of at most the plan's prompt tokens, and between them are steps that only decode. The sequences of a
pipeline are in as many groups as it has stages; a step of one group runs in each stage in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...passes.placement import Span
from ..targets.cuda.kernels.linear.choose import SMALL_M
from .pieces import LARGE, MIXED, SMALL, Pieces
from .rates import Rates
from .steps import Clock, Cost, Exchange, Step, total


@dataclass(frozen=True)
class Workload:
    """Requests of one length."""

    input: int
    """Tokens of a prompt."""
    output: int
    """Tokens of an answer."""
    prefill: int | None = None
    """Most prompt tokens of a step; None: the plan's."""


@dataclass(frozen=True)
class Served:
    """Figures of one copy of a model with some requests at once."""

    sequences: int
    """Requests at once."""
    tpot: float
    """Seconds between two tokens of a request, after its first."""
    ttft: float
    """Seconds from the first step of a prompt to its first token, while the other requests go on."""
    decode: float
    """Tokens/s that are generated, of all requests together."""
    prefill: float
    """Tokens/s of prompts that are read, of all requests together."""
    shares: Mapping[str, float]
    """The share of the time by what bounds it."""

    @property
    def bound(self) -> str:
        """What most of the time is bound by."""
        return max(self.shares, key=lambda name: self.shares[name])


class Server:
    """Prices a load on the stages of one split."""

    def __init__(
        self, pieces: Pieces, stages: Sequence[Span], clock: Clock, exchanges: Sequence[Exchange], rates: Rates
    ) -> None:
        """`exchanges` are those of each stage."""
        self._pieces, self._clock, self._rates = pieces, clock, rates
        given = list(zip(stages, exchanges, strict=True))
        self._kinds = [(frozenset(pieces.skeleton.blocks(stage).items()), exchange) for stage, exchange in given]
        """Of each stage: those with the same blocks and the same links cost the same."""
        self._stages = dict(zip(self._kinds, given, strict=True))
        """One stage of each kind."""
        self._known: dict[Step, list[Cost]] = {}

    def served(self, load: Workload, sequences: int) -> Served:
        """The figures with so many requests at once."""
        groups = min(sequences, len(self._kinds))
        each = sequences / groups
        most = load.prefill or self._pieces.prefill
        per_token = load.input / load.output
        decoding = min(each, most / per_token)
        wanted = decoding * per_token
        chunk = min(most, max(load.input, wanted))
        share = min(1.0, wanted / chunk)
        context = load.input + load.output // 2
        alone = self._costs(Step(math.ceil(decoding), context))
        mixed = self._costs(self._mixed(load, math.ceil(decoding), context, math.ceil(chunk)))
        steps = [one.times(1 - share).plus(other.times(share)) for one, other in zip(alone, mixed, strict=True)]
        seconds = [step.seconds for step in steps]
        cycle = max(sum(seconds), groups * max(seconds))
        spent = total(steps).times(groups / len(steps))
        idle = max(0.0, cycle - spent.seconds)
        shares = {key: part / cycle for key, part in {**vars(spent), "bubble": idle}.items()}
        first = self._first(load, math.ceil(decoding), context, most, math.ceil(chunk))
        rate = decoding * groups / cycle
        return Served(sequences, cycle, first, rate, rate * per_token, shares)

    def waves(self, load: Workload, sequences: int) -> Served:
        """The figures of an engine that mixes no prompts into decode steps, with requests that are all alike.

        SGLang is one unless it is started with `--enable-mixed-chunk` (docs.sglang.io, server arguments: off by
        default). Requests that are alike end together, so their prompts come together: a wave of them is read, in
        steps of prompts alone, before any of its requests goes on. A request waits, on average, half of a wave's
        reading for its first token, and the other half of it for its second.
        """
        groups = min(sequences, len(self._kinds))
        each = math.ceil(sequences / groups)
        most = load.prefill or self._pieces.prefill
        tokens = sequences * load.input
        chunks = math.ceil(tokens / most)
        chunk = math.ceil(tokens / chunks)
        read = self._costs(self._mixed(load, 0, 0, chunk))
        decode = self._costs(Step(each, load.input + load.output // 2))
        reading = total(read).seconds + (chunks - 1) * max(cost.seconds for cost in read)
        decoding = max(total(decode).seconds, groups * max(cost.seconds for cost in decode))
        decodes = load.output - 1
        wave = reading + decodes * decoding
        spent = total(read).times(chunks).plus(total(decode).times(decodes * groups)).times(1 / len(read))
        idle = max(0.0, wave - spent.seconds)
        shares = {key: part / wave for key, part in {**vars(spent), "bubble": idle}.items()}
        first = reading * (chunks + 1) / (2 * chunks)
        rate = sequences * load.output / wave
        tpot = (wave - first) / max(1, decodes)
        return Served(sequences, tpot, first, rate, rate * load.input / load.output, shares)

    def _mixed(self, load: Workload, decoding: int, context: int, chunk: int) -> Step:
        return Step(decoding, context, chunk, max(1, round(chunk / load.input)), load.input // 2)

    def _first(self, load: Workload, decoding: int, context: int, most: int, steady: int) -> float:
        """The steps of one prompt: each follows the last through the stages, and has `steady` tokens of prompts, some
        of other short ones."""
        chunks = math.ceil(load.input / most)
        chunk = max(math.ceil(load.input / chunks), steady if chunks == 1 else 0)
        seconds = [cost.seconds for cost in self._costs(self._mixed(load, decoding, context, chunk))]
        return sum(seconds) + (chunks - 1) * max(seconds)

    def _costs(self, step: Step) -> list[Cost]:
        """The cost of a step in each stage; the host's time is part of the first stage's."""
        if step not in self._known:
            program = MIXED if step.prompt else SMALL if step.sequences <= SMALL_M else LARGE
            each = {kind: self._clock.stage(one, program, step, moved) for kind, (one, moved) in self._stages.items()}
            costs = [each[kind] for kind in self._kinds]
            host = self._rates.step + self._rates.sequence * (step.sequences + step.prompts)
            self._known[step] = [costs[0].plus(Cost(host=host)), *costs[1:]]
        return self._known[step]
