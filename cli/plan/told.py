"""A plan as text: the best in a few lines, why others lost, and the frontier."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ...recipes.goal import LIMITS, shown_figure
from ...runtime.dtypes import FP4_FORMATS
from ...runtime.errors import printable
from ..common import console

if TYPE_CHECKING:
    from ...compiler.deploy.report import BuildFigures, CandidateReport, FrontierPoint, PlanReport

_HEAD = "{model.path}: {model.architecture}, {parameters} parameters, {layers}, {model.dtype}"
_ASKED = "  goal {goal}; prompts of {load.input_tokens} tokens, answers of {load.output_tokens}; context {load.context}"
_FIGURES = """\
  {requests} at once{each}: {tpot} per token, first token after {ttft}, {decode} generated and {prefill} of \
prompts
  the time is {shares}
  a GPU has {usable} for: weights {weights}, {per_copy} x cache of {cache}, workspace {workspace}"""
_STACK = (
    "These are times of a well-tuned stack: the model's constants are fitted to TensorRT-LLM's published throughput on "
    "H100,\nand llmc's own kernels have not been measured on a GPU. What a format does to accuracy is not priced: "
    "--quantize says\nwhich formats may be chosen, and llmc eval measures them."
)
_REASON = 76
"""Characters of a reason that a table shows; --json has all."""
_FRONTIER_ROWS = 12
_T = TypeVar("_T")


def text(plan: PlanReport, every: bool) -> str:
    """What a plan has found; with `every`, all candidates."""
    model, load = plan.model, plan.load
    lines = [
        _HEAD.format(model=model, parameters=_scaled(model.parameters), layers=console.counted(model.layers, "layer")),
        _ASKED.format(goal=plan.goal, load=load),
        *_answer(plan),
        "",
        *_others(plan, every),
    ]
    if plan.frontier:
        lines += ["", *_frontier(plan)]
    return printable("\n".join([*lines, "", _STACK]))


def _answer(plan: PlanReport) -> Iterator[str]:
    if plan.best is not None:
        yield f"best: {_what(plan.best)}"
        yield _figures(plan.best)
        yield f"  {_command(plan, plan.best)}"
        yield f"  {_build(plan.best.build)}"
    elif plan.nearest is not None:
        yield f"no candidate reaches the goal; nearest: {_what(plan.nearest)}"
        yield f"  {plan.nearest.lost}"
        yield _figures(plan.nearest)
    else:
        yield f"no candidate fits: {plan.candidates[0].lost}" if plan.candidates else "no candidate is legal"
        for one in plan.would_fit:
            yield f"  would fit: {one.profile} on {one.machine}, weights {one.quantize}"


def _what(one: CandidateReport) -> str:
    copies = f", {one.copies} copies" if one.copies > 1 else ""
    price = f" at ${one.dollars_per_hour:.2f} an hour" if one.dollars_per_hour is not None else ""
    return f"{one.profile} on {one.machine}{price}{copies}, {_format(one)}"


def _format(one: CandidateReport) -> str:
    return f"weights {one.quantize} ({one.bits_per_weight:.3g} bits), activations {one.activations}, KV cache {one.kv}"


def _figures(one: CandidateReport) -> str:
    shares = sorted((one.shares or {}).items(), key=lambda pair: -pair[1])
    said = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares if share >= 0.005)
    memory = one.memory
    return _FIGURES.format(
        requests=console.counted(one.requests or 0, "request"),
        each=f" ({one.requests_per_copy} a copy)" if one.copies > 1 else "",
        tpot=_shown("tpot", one.tpot_s),
        ttft=_shown("ttft", one.ttft_s),
        decode=_shown("decode", one.decode_tokens_per_s),
        prefill=_shown("prefill", one.prefill_tokens_per_s),
        shares=said,
        usable=_bytes(memory.usable_bytes),
        weights=_bytes(memory.weights_bytes),
        per_copy=one.requests_per_copy,
        cache=_bytes(memory.cache_bytes_per_request),
        workspace=_bytes(memory.workspace_bytes),
    )


def _command(plan: PlanReport, one: CandidateReport) -> str:
    """The command that builds a candidate."""
    checkpoint = shlex.quote(plan.model.path) if plan.model.has_weights else "CHECKPOINT"
    words = ["llmc build", checkpoint, "-o model.llmc", f"--target {one.profile.partition('-')[0]}"]
    words += [f"--quantize {one.quantize}"] if one.quantize != "none" else []
    words += [f"--activations {one.activations}"] if one.activations != "none" else []
    words += [f"--kv {one.kv}"] if one.kv != "none" else []
    words += [f"--parallel {one.parallel}"] if one.parallel != "tp1" else []
    return " ".join([*words, f"--max-context {plan.load.context}", f"--max-batch {one.requests_per_copy}"])


def _build(build: BuildFigures) -> str:
    text = f"the engine takes {_bytes(build.disk_bytes)} of disk"
    if build.seconds is None or build.peak_bytes is None:
        return text
    return f"{text}; its build takes {_duration(build.seconds)} and {_bytes(build.peak_bytes)} of memory here"


def _others(plan: PlanReport, every: bool) -> Iterator[str]:
    """A table of candidates; the best of each split, format and machine, unless it is of all."""
    shown = [*plan.candidates] if every else [*_leading(plan.candidates)]
    rows = [("machine", "profile", "weights", "requests", "per token", "first token", "tokens/s", "why not")]
    rows += [_row(one, every) for one in shown]
    left = len(plan.candidates) - len(shown)
    if shown:
        whole = f"the best of each split, format and machine, of {len(plan.candidates)} candidates:"
        yield whole if left else "candidates:"
        yield console.table(rows)
    if left:
        yield f"  {left} more: --all, or --json"
    if plan.not_priced:
        yield f"  not priced, as dearer or without a list price: {', '.join(plan.not_priced)}"
    formats = dict.fromkeys((one.quantize, one.reason) for one in plan.refused if one.tp is None or not plan.candidates)
    for name, reason in formats:
        yield f"  {name} cannot be used: {reason}"


def _leading(candidates: Iterable[CandidateReport]) -> Iterator[CandidateReport]:
    """The first of each split, of each format, and of each machine."""
    seen: set[tuple[str, str]] = set()
    for one in candidates:
        keys = {("split", one.parallel), ("format", _weights(one)), ("machine", one.machine)}
        if keys - seen:
            yield one
        seen |= keys


def _row(one: CandidateReport, every: bool) -> tuple[str, ...]:
    whole = every or len(one.lost) <= _REASON
    why = one.lost if whole else f"{one.lost[:_REASON]}..."
    figures = ("", "", "", "")
    if one.fits:
        figures = (
            str(one.requests),
            _shown("tpot", one.tpot_s),
            _shown("ttft", one.ttft_s),
            f"{one.decode_tokens_per_s or 0:,.0f}",
        )
    return (one.machine, one.profile, _weights(one), *figures, why)


def _weights(one: CandidateReport | FrontierPoint) -> str:
    """A weight format, and whether activations of large steps have 4 bits too: other formats have one kind of them."""
    return f"{one.quantize} W4A4" if one.activations == one.quantize and one.quantize in FP4_FORMATS else one.quantize


def _frontier(plan: PlanReport) -> Iterator[str]:
    points = _spread(plan.frontier, _FRONTIER_ROWS)
    left = len(plan.frontier) - len(points)
    yield f"frontier of {plan.frontier[0].machine}: no other gives both a request and the machine more tokens/s"
    rows = [("tokens/s of a request", "of the machine", "requests", "profile", "weights", "first token")]
    rows += [
        (
            f"{one.tokens_per_s_of_request:.1f}",
            f"{one.decode_tokens_per_s:,.0f}",
            str(one.requests),
            one.profile,
            _weights(one),
            _shown("ttft", one.ttft_s),
        )
        for one in points
    ]
    yield console.table(rows)
    if left:
        yield f"  {left} more: --json, or --chart FILE.svg"


def _spread(values: Sequence[_T], most: int) -> list[_T]:
    """At most so many of them, evenly, with the first and the last."""
    if len(values) <= most:
        return [*values]
    return [values[round(at * (len(values) - 1) / (most - 1))] for at in range(most)]


def _shown(name: str, figure: float | None) -> str:
    return "" if figure is None else shown_figure(LIMITS[name], figure)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _scaled(count: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
