"""What a plan is to reach, as a value: `throughput, tpot<=40ms, gpus<=8`. One grammar for `plan` and `build`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..runtime.errors import RecipeError, nearest
from .metrics import BYTES, METRICS, SECONDS, SHORT, Bound, Metric, Wording, read_bound

_PLANNED = (
    Metric("tpot", "plan", SECONDS, "lower", "seconds per generated token of one request, after its first"),
    Metric("bits", "plan", "", "lower", "stored bits per weight, scales included"),
    Metric("bytes", "plan", BYTES, "lower", "weights, cache and buffers of the GPU that holds most"),
    Metric("gpus", "plan", "", "lower", "number of GPUs", low=1.0),
    Metric("price", "plan", "dollars an hour", "lower", "list price of all GPUs"),
)
"""What only a plan knows."""
LIMITS: Mapping[str, Metric] = {
    one.name: one for one in (*_PLANNED, *METRICS.values()) if one.command in ("plan", "bench")
}
"""Figures of a plan that a goal can limit."""
OBJECTIVES: Mapping[str, str] = {"latency": "tpot", "throughput": "decode", "bytes": "bytes"}
"""What a plan can be best at, and the figure that says so, in the direction in which its metric is better."""
DEFAULT_OBJECTIVE = "throughput"
_LOSS = "loss"
_NOT_LIMITS = {"latency": "'tpot<=40ms' or 'ttft<=0.2s'", "throughput": "'decode>=1000'"}
"""Objectives that are no limits, and the limits that are meant."""
_WORDING = Wording("limit", "--goal", "'tpot<=40ms', 'decode>=1000' or an objective: latency, throughput, bytes")
_NAME = re.compile(r"\s*\w+")
_SHOWN = 80
"""Characters of a wrong part that an error shows."""
_WHOLE = "gpus"
"""The one figure that counts."""


@dataclass(frozen=True)
class Limit(Bound):
    """A bound that a plan's figure must keep, such as tpot<=40ms; `limit` is in the unit of its metric.

    Raises:
        RecipeError: no figure has this name, or the bound always or never holds.
    """

    def __post_init__(self) -> None:
        if self.name not in LIMITS:
            raise RecipeError(f"cannot find the limit {self.name!r}", fix=f"one of {', '.join(LIMITS)}")
        if not math.isfinite(self.limit):
            raise RecipeError(f"expected a finite limit of {self.name}", found=f"{self.limit:g}")
        if self.name == _WHOLE and self.limit != int(self.limit):
            raise RecipeError(f"expected a whole number as the limit of {self.name}", found=f"{self.limit:g}")
        least = self.metric.low or math.ulp(0.0)  # a figure without a low end of its own is above 0
        holds = [self.passes(figure) for figure in (least, math.inf)]
        if all(holds) or not any(holds):
            what = f"{self}: every {self.name} keeps it" if all(holds) else f"{self}: no {self.name} keeps it"
            raise RecipeError("expected a limit that can hold and can fail", found=what)

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.metric.text(self.limit)}"

    @property
    def metric(self) -> Metric:
        return LIMITS[self.name]

    @property
    def is_most(self) -> bool:
        """True of <= and <."""
        return self.operator[0] == "<"

    def miss(self, figure: float | None) -> str:
        """Why a figure fails this limit, and by how much; "" if it keeps it. None is a figure that nobody knows."""
        if figure is None or math.isnan(figure):
            return f"{self.name} is not known, {self} is asked"
        if self.passes(figure):
            return ""
        found = f"{self.name} {shown_figure(self.metric, figure)}"
        if figure == self.limit:
            return f"{found} is not {'below' if self.is_most else 'above'} {shown_figure(self.metric, figure)}"
        side = "over" if self.is_most else "under"
        apart = abs(figure - self.limit)
        share = 100 * apart / self.limit
        by = f"{apart:.0f}" if self.name == _WHOLE else f"{share:,.0f} %" if share >= 99.5 else f"{share:.2g} %"
        return f"{found} is {by} {side} {shown_figure(self.metric, self.limit)}"


@dataclass(frozen=True)
class Goal:
    """What a plan is to be best at, and the limits it must keep; its text is canonical and parses back to it.

    Limits are held in the order of LIMITS, whatever order they came in.

    Raises:
        RecipeError: the objective is unknown, or limits say the same twice or contradict each other.
    """

    objective: str = DEFAULT_OBJECTIVE
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            hint = nearest(self.objective, OBJECTIVES)
            fix = f"one of {', '.join(OBJECTIVES)}"
            raise RecipeError(f"cannot find the objective {self.objective!r}{hint}", fix=fix)
        order = [*LIMITS]
        ordered = sorted(self.limits, key=lambda one: (order.index(one.name), not one.is_most))
        object.__setattr__(self, "limits", tuple(ordered))
        for one, other in pairwise(ordered):
            if one.name != other.name:
                continue
            if one.is_most == other.is_most:
                asked = f"expected one limit {'above' if one.is_most else 'below'} {one.name}"
                raise RecipeError(asked, found=f"{one} and {other}")
            if _largest(one) < _smallest(other):
                raise RecipeError("expected limits that one plan can keep", found=f"{one} and {other}")

    def __str__(self) -> str:
        return ",".join((self.objective, *map(str, self.limits)))

    @property
    def metric(self) -> Metric:
        """The metric of the objective: its name is the figure's, `better` says in which direction a plan is better."""
        return LIMITS[OBJECTIVES[self.objective]]

    def misses(self, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Why figures, by the names of LIMITS, do not reach this goal: one text for each limit that fails, such as
        "tpot 52 ms is 30 % over 40 ms"; empty if all are kept. A figure that is absent or NaN keeps no limit."""
        return tuple(miss for one in self.limits if (miss := one.miss(figures.get(one.name))))

    def rank(self, figures: Mapping[str, float]) -> float:
        """The figure of the objective as a number that is smaller for a better plan: best is the least rank."""
        figure = figures[self.metric.name]
        return figure if self.metric.better == "lower" else -figure


def shown_figure(metric: Metric, value: float) -> str:
    """A figure for people, three digits and the unit that suits it: 52.1 ms, 70.3 GB, 12,345 tokens/s."""
    if metric.unit == SECONDS:
        scale, unit = next(one for one in ((1, "s"), (1e3, "ms"), (1e6, "us")) if value * one[0] >= 1 or one[0] == 1e6)
        return f"{value * scale:.3g} {unit}"
    if metric.unit == BYTES:
        return f"{value / 1e9:.3g} GB"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {metric.unit}".strip()


def parse_goal(text: str) -> Goal:
    """Read a goal: parts between commas, at most one of them an objective (`throughput` if there is none), the others
    limits such as `tpot<=40ms` or `gpus>=4`. Times take us, ms and s, bytes take what `size_bytes` reads.

    Raises:
        RecipeError: a part is neither, limits accuracy, says the same twice, or cannot be kept beside another.
    """
    objectives: list[str] = []
    limits: list[Limit] = []
    for part in text.split(","):
        word = part.strip()
        if word == _LOSS:
            raise _accuracy("cannot search for the least loss", "llmc eval ENGINE --gate 'kl_mean<=0.02'")
        if word in OBJECTIVES:
            objectives.append(word)
        else:
            limits.append(_limit(part))
    if len(objectives) > 1:
        raise RecipeError("expected one objective of a goal", found=", ".join(objectives))
    return Goal(*(objectives or [DEFAULT_OBJECTIVE]), limits=tuple(limits))


def _limit(part: str) -> Limit:
    bare = part.strip()
    word = found[0].strip() if (found := _NAME.match(part)) else ""
    name, is_bare = SHORT.get(word, word), word == bare
    if name in _NOT_LIMITS and not is_bare:
        fix = f"{_NOT_LIMITS[name]}, or {name} alone"
        raise RecipeError(f"cannot limit {name}, which is an objective", found=repr(bare[:_SHOWN]), fix=fix)
    if name == _LOSS or (name in METRICS and name not in LIMITS):
        gate = "kl_mean<=0.02" if name == _LOSS or is_bare else bare[:_SHOWN]
        raise _accuracy(f"cannot keep a limit on {name}", f"llmc eval ENGINE --gate '{gate}'")
    if is_bare and name not in LIMITS:
        if not name:
            raise RecipeError("expected a part of a goal", found=repr(part[:_SHOWN]), fix=_WORDING.examples)
        hint = nearest(name, (*OBJECTIVES, *LIMITS))
        raise RecipeError(f"cannot find the objective or limit {name[:_SHOWN]!r}{hint}", fix=_WORDING.examples)
    metric, sign, value, _ = read_bound(part, LIMITS, _WORDING)
    return Limit(metric.name, sign, value)


def _accuracy(asked: str, gate: str) -> RecipeError:
    found = "the search for formats under an accuracy limit is not built yet"
    return RecipeError(asked, found=found, fix=f"a --quantize of your choice, then {gate}")


def _largest(limit: Limit) -> float:
    """The largest figure that a limit above allows."""
    if limit.operator == "<":
        return limit.limit - 1 if limit.name == _WHOLE else math.nextafter(limit.limit, -math.inf)
    return limit.limit


def _smallest(limit: Limit) -> float:
    """The smallest figure that a limit below allows."""
    if limit.operator == ">":
        return limit.limit + 1 if limit.name == _WHOLE else math.nextafter(limit.limit, math.inf)
    return limit.limit
