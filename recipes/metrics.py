"""The one table of measured metrics, and the one parser of bounds on them: gates such as `kl_mean<=0.01`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..runtime.errors import RecipeError, nearest
from ..runtime.machine import size_bytes
from .units import SHAPE_OF_TIME, seconds_of, time_text

BYTES, SECONDS = "bytes", "s"
"""Units whose values are read and shown with one: 70GB, 40ms."""


@dataclass(frozen=True)
class Metric:
    """A figure of an engine that a gate or a limit can bound. Its name is the figure's key in `--json`."""

    name: str
    command: Literal["eval", "bench", "plan"]
    unit: str
    better: Literal["lower", "higher"]
    meaning: str
    low: float = 0.0
    high: float = math.inf
    """Limits outside [low, high] would pass always or never."""
    compares: bool = False
    """Measured against a baseline only."""
    whole: bool = False
    """Measured in rolling windows over whole texts only: it counts their words or bytes."""

    def read(self, text: str) -> float | None:
        """The value of a text in this metric's unit; None if it is no number.

        Raises:
            RecipeError: it is no size, of a metric in bytes.
        """
        if self.unit == SECONDS:
            return seconds_of(text)
        if self.unit == BYTES:
            return size_bytes(text, f"a size as the limit of {self.name}")
        return float(text) if _NUMBER.fullmatch(text) else None

    def text(self, value: float) -> str:
        """The shortest text that `read` takes as exactly this value: 40ms, 70GB, 0.01."""
        if self.unit == SECONDS:
            return time_text(value)
        if self.unit == BYTES:
            return size_text(int(value))
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)


METRICS: Mapping[str, Metric] = {
    one.name: one
    for one in (
        Metric("perplexity", "eval", "", "lower", "e to the mean surprise of a token", low=1.0),
        Metric("ppl_ratio", "eval", "", "lower", "perplexity over the baseline's", compares=True),
        Metric("kl_mean", "eval", "nats", "lower", "mean of KL(baseline || engine)", compares=True),
        Metric("kl_p99", "eval", "nats", "lower", "99th percentile of KL(baseline || engine)", compares=True),
        Metric("top1", "eval", "", "higher", "share of tokens with the baseline's best token", high=1.0, compares=True),
        Metric("word_perplexity", "eval", "", "lower", "perplexity per word, as lm-eval's", low=1.0, whole=True),
        Metric("byte_perplexity", "eval", "", "lower", "perplexity per byte, as lm-eval's", low=1.0, whole=True),
        Metric("bits_per_byte", "eval", "bits", "lower", "bits per byte, as lm-eval's", whole=True),
        Metric("decode", "bench", "tokens/s", "higher", "tokens generated a second, of all prompts together"),
        Metric("prefill", "bench", "tokens/s", "higher", "tokens of prompts read a second"),
        Metric("ttft", "bench", "s", "lower", "seconds to the first token of every prompt"),
    )
}
SHORT: Mapping[str, str] = {"kl": "kl_mean", "ppl": "perplexity"}
"""Short names of metrics."""
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_SIZES = tuple(
    (f"{unit}{i}B", base**power)
    for power, unit in ((4, "T"), (3, "G"), (2, "M"))
    for base, i in ((1000, ""), (1024, "i"))
)
_SIGN = {"lower": "<", "higher": ">"}
_BOUND = re.compile(r"\s*(\w+)\s*([<>]=?)\s*([-+.%\w]+(?: [A-Za-z]+)?)\s*")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Bound:
    """A bound of one figure: of a metric, on one side."""

    name: str
    operator: str
    limit: float

    def passes(self, figure: float) -> bool:
        """True if the figure keeps the bound; NaN never does."""
        return _OPERATORS[self.operator](figure, self.limit)


@dataclass(frozen=True)
class Gate(Bound):
    """A bound that a measured figure must keep, such as kl_mean<=0.01."""

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.limit:.12g}"

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]


@dataclass(frozen=True)
class Wording:
    """How refusals call a bound, the flag that takes it, and examples of it."""

    noun: str
    flag: str
    examples: str


_GATE = Wording("gate", "--gate", "'kl_mean<=0.01' or 'decode>=30'")


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one measured figure."""

    gate: Gate
    measured: float

    @property
    def passed(self) -> bool:
        return self.gate.passes(self.measured)

    def to_json(self) -> dict[str, Any]:
        """As in the list `gates` of `--json`; a figure that is not finite is null."""
        return {
            "gate": str(self.gate),
            "name": self.gate.name,
            "measured": self.measured if math.isfinite(self.measured) else None,
            "limit": self.gate.limit,
            "passed": self.passed,
        }


def read_bound(text: str, metrics: Mapping[str, Metric], wording: Wording) -> tuple[Metric, str, float, str]:
    """One bound as metric, operator, value in the metric's unit and the value's text. Blanks may stand around its
    parts, and `kl` is `kl_mean`.

    Raises:
        RecipeError: it has not this form, no metric has this name, or the value is none of the metric's.
    """
    found = _BOUND.fullmatch(text)
    if found is None:
        form = f"expected a {wording.noun} NAME<=NUMBER or NAME>=NUMBER"
        bare = SHORT.get(text.strip(), text.strip())
        if bare in metrics:  # what a shell leaves of an unquoted bound
            sign = _SIGN[metrics[bare].better]
            fix = f"{wording.flag} '{bare}{sign}=...' in quotes: a shell reads < and > as redirections"
            raise RecipeError(form, found=repr(text[:80]), fix=fix)
        raise RecipeError(form, found=repr(text[:80]), fix=f"{wording.examples}, in quotes")
    word, sign, number = found.groups()
    name = SHORT.get(word, word)
    if name not in metrics:
        hint = nearest(word, (*metrics, *SHORT))
        raise RecipeError(f"cannot find the metric {word!r}{hint}", fix=f"one of {', '.join(metrics)}")
    metric = metrics[name]
    value = metric.read(number)
    if value is None:
        fix = SHAPE_OF_TIME if metric.unit == SECONDS else f"a plain number{metric.unit and ', in ' + metric.unit}"
        fix = "a share from 0 to 1" if metric.high == 1 else fix
        raise RecipeError(f"expected a number in the {wording.noun} of {name}", found=repr(number[:80]), fix=fix)
    return metric, sign, value, number


def parse_gate(text: str) -> Gate:
    """Read one gate.

    Raises:
        RecipeError: no metric has this name, the bound is on the metric's good side, or the limit cannot be meant.
    """
    metric, sign, limit, number = read_bound(text, METRICS, _GATE)
    name = metric.name
    if sign[0] != _SIGN[metric.better]:
        raise RecipeError(
            f"expected a gate {name}{_SIGN[metric.better]}=NUMBER: a {metric.better} {name} is better",
            found=repr(text[:80]),
        )
    best = {"lower": metric.low, "higher": metric.high}[metric.better]
    if len(sign) == 1 and limit == best:
        fix = f"{name}{sign}={best:g}"
        raise RecipeError("expected a gate that can pass", found=f"{text.strip()[:80]!r}: no {name} is better", fix=fix)
    if metric.better == "higher" and limit == metric.low:
        raise RecipeError("expected a gate that can fail", found=f"{text.strip()[:80]!r}: every {name} passes")
    if not metric.low <= limit <= metric.high or math.isinf(limit):
        most = f" to {metric.high:g}" if math.isfinite(metric.high) else ""
        raise RecipeError(f"expected a limit of {name} from {metric.low:g}{most}", found=number[:80])
    return Gate(name, sign, limit)


def size_text(count: int) -> str:
    """Bytes as a text that `size_bytes` reads exactly: 70GB, 1536MiB, 12345B."""
    for unit, size in _SIZES:
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count}B"


def gates_for(
    command: Literal["eval", "bench"], texts: Iterable[str], *, baseline: bool = False, whole: bool = False
) -> tuple[Gate, ...]:
    """The gates of a command line, checked before anything is measured; `baseline` says whether there is one, `whole`
    whether rolling windows cover whole texts.

    Raises:
        RecipeError: a text is no gate, another command measures its metric, or it needs what is not given.
    """
    gates = tuple(map(parse_gate, texts))
    for gate in gates:
        if gate.metric.command != command:
            right = gate.metric.command
            raise RecipeError(
                f"cannot gate llmc {command} by {gate.name}",
                found=f"llmc {right} measures {gate.name}",
                fix=f"llmc {right} ... --gate '{gate}'",
            )
        if gate.metric.compares and not baseline:
            raise RecipeError(
                f"expected --baseline with the gate {gate}",
                found=f"{gate.name} compares with a baseline",
                fix="--baseline CHECKPOINT, or an engine",
            )
        if gate.metric.whole and not whole:
            raise RecipeError(
                f"expected --windows rolling over whole texts with the gate {gate}",
                found=f"{gate.name} counts words or bytes",
                fix='--windows rolling --text FILE, or --jsonl with "text", without --max-tokens',
            )
    return gates


def judge(gates: Iterable[Gate], figures: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """The verdict of each gate on measured figures, which have the names of metrics."""
    return tuple(Verdict(gate, float(figures[gate.name])) for gate in gates)
