"""What is printed last: each step in a line, what is wrong by name, and the numbers that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bringup.journal import Journal, right, step_of

_NAMED = 3
_ROWS = 14
_WIDE = 110


def table(journal: Journal) -> list[str]:
    """Lines, fewer than 60."""
    head = journal.head
    card = f"{head.get('card', 'no GPU')}, driver {head.get('driver', '-')}, rung {head.get('rung', '-')}"
    return [f"{journal.call}: {card}", *_steps(journal.outcomes), *_numbers(journal.outcomes)]


def _steps(outcomes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    steps: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, outcome in outcomes.items():
        steps.setdefault(step_of(name), {})[name] = outcome
    for step, found in steps.items():
        wrong = {name: outcome for name, outcome in found.items() if "left out" not in outcome and not right(outcome)}
        left = sum("left out" in outcome for outcome in found.values())
        seconds = sum(outcome.get("seconds", 0.0) for outcome in found.values())
        counts = f"{len(found) - left - len(wrong)} right, {len(wrong)} wrong, {left} left out"
        yield f"{step:12} {counts}, {seconds:.1f} s"
        failed = {name: outcome for name, outcome in wrong.items() if "error" in outcome}
        if failed and len(failed) < len(wrong):
            yield f"  {len(failed)} of the wrong ones came to no end"
        for name, outcome in [*failed.items(), *((n, o) for n, o in wrong.items() if n not in failed)][:_NAMED]:
            yield f"  {name.partition('/')[2]}: {_why(outcome)}"[:_WIDE]


def _why(outcome: Mapping[str, Any]) -> str:
    if "error" in outcome:
        return " ".join(str(outcome["error"]).split())
    found = outcome["result"]
    return ", ".join(
        f"{name} {value}" for name, value in found.items() if name != "ok" and not isinstance(value, dict | list)
    )


def _numbers(outcomes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Bandwidths, prices of launches, decode steps, and the launches that take longest."""
    found = {name: outcome["result"] for name, outcome in outcomes.items() if "result" in outcome}
    for name, one in found.items():
        step, _, item = name.partition("/")
        if step == "ceilings" and "bytes_per_s" in one:
            yield f"{item}: {one['bytes_per_s'] / 1e12:.3f} TB/s"
        elif step == "ceilings" and "us" in one:
            yield f"{item}: {one['us']:.2f} us"
        elif "tflops" in one and "ms" in one:
            yield f"{item}: {one['ms']:.2f} ms, {one['tflops']:.0f} TFLOP/s"
        elif "best" in one:
            best = one["best"]
            speed = f"{best['us']:.1f} us, {best['bytes_per_s'] / 1e12:.2f} TB/s, {best['tflops']:.0f} TFLOP/s"
            yield f"{item}: {speed}, heuristic {one['heuristic_us']:.1f} us; {_tile(best['tile'])}"
        elif "more_ms" in one:
            yield f"{item}: sampled {one['ms']:.3f} ms, {one['more_ms']:.3f} more than greedy"
        elif "bytes_per_s" in one and "tokens_per_s" in one and "ms" in one:
            speed = f"{one['ms']:.3f} ms, {one['bytes_per_s'] / 1e12:.2f} TB/s{_share(one)}"
            speed += f", {one['tokens_per_s']:.0f} tokens/s"
            label = item if f"{one.get('plan')}" in item else f"{one.get('plan')} batch {one.get('batch')}, {item}"
            yield f"{label}: {speed}"
    rows = [one for one in found.values() if "us" in one and "count" in one]
    for one in sorted(rows, key=lambda one: -one["us"] * one["count"])[:_ROWS]:
        label = f"{one['count']:3} x {one['us']:8.2f} us{_share(one)}"
        yield f"{label}  {one['kernel']} {one['grid']} {one['label']}"[:_WIDE]


def _tile(tile: Mapping[str, int]) -> str:
    return " ".join(f"{name} {number}" for name, number in tile.items())


def _share(one: Mapping[str, Any]) -> str:
    share = one.get("percent_of_read")
    return f", {share:.0f} % of reading" if share is not None else ""
