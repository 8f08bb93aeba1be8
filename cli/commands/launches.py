"""`llmc inspect --plan`: what every launch of a step costs at the limits of a GPU, and the tokens/s left then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError
from ..common import console

if TYPE_CHECKING:
    from ...runtime.chips import Chip
    from ...runtime.plan.plan import Plan, Program
    from ...runtime.plan.price import Line, Price


_PRICED = ("label", "bytes", "operations", "seconds")
_BINARY = ("registers", "spills", "shared")


@dataclass(frozen=True)
class Step:
    """What the user asked to be priced; by default one decode step of one sequence, with the cache half full."""

    program: int | None
    tokens: int | None
    context: int | None


@dataclass(frozen=True)
class _Chosen:
    """A profile's plan, the program in question and its step's sizes, and where it is to run."""

    profile: str
    plan: Plan
    index: int
    sizes: Mapping[str, int]
    chip: Chip

    @property
    def program(self) -> Program:
        return self.plan.programs[self.index]


def show(engine: str, *, profile: str | None, gpu: str | None, step: Step, json: bool) -> None:
    """Price a step of an engine's plan and print it."""
    from ...runtime.chips import chip as chip_named
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.plan.plan import Plan
    from ...runtime.plan.price import Roofline, price
    from ...runtime.profiles import best, planned, runnable

    with EngineFile.open(engine) as opened:
        name = planned(opened, profile)
        chip = chip_named(gpu) if gpu is not None else None
        if chip is not None and profile is None:
            able = runnable(opened, (chip.sm,))
            name = best(opened, able) if able else name
        facts, model = opened.manifest.profiles[name], opened.manifest.model
        plan = Plan.from_json(opened.section(facts.graph), what=f"{engine}: {facts.graph}")
    chip = chip or chip_named(plan.sm)
    _refuse_other_chip(engine, name, plan.sm, chip)
    index, sizes = _step(plan, step)
    chosen = _Chosen(name, plan, index, sizes, chip)
    context = facts.max_context // 2 if step.context is None else step.context
    if context > facts.max_context:
        raise RecipeError(f"--context {context}", found=f"a context of {facts.max_context}")
    limits = Roofline(chip.reachable_bandwidth, chip.bf16)
    found = price(plan, chosen.program, limits, sizes=sizes, context=context, heads=model.heads)
    console.show({"path": engine, **_as_json(chosen, found)}, _text(engine, chosen, found), json)


def _refuse_other_chip(engine: str, profile: str, sm: int, chip: Chip) -> None:
    from ...runtime.chips import capability, runs_on, target_for

    if not runs_on(sm, chip.sm):
        raise RecipeError(
            f"{engine}: profile {profile!r} on {chip.name}",
            found=f"needs compute capability {capability(sm)}, {chip.name} has {capability(chip.sm)}",
            fix=f"a GPU of that capability after --for, or llmc build --target {target_for(chip.sm)}",
        )


def _step(plan: Plan, asked: Step) -> tuple[int, dict[str, int]]:
    """The program and its sizes: full, but for logits of a prompt, of which only the last token's are wanted."""
    programs = plan.programs
    if asked.program is not None and asked.tokens is not None:
        raise RecipeError("--program and --tokens together", fix="one of them")
    if asked.tokens is not None:
        for index, program in enumerate(programs):
            if not program.decode and program.tokens >= asked.tokens:
                return index, {"tokens": asked.tokens, "sequences": 1, "rows": 1}
        most = max((program.tokens for program in programs if not program.decode), default=0)
        raise RecipeError(f"--tokens {asked.tokens}", found=f"steps of at most {most} tokens")
    index = asked.program or 0
    if index >= len(programs):
        raise RecipeError(f"--program {index}", found=f"{len(programs)} programs, numbered from 0")
    program = programs[index]
    return index, {**program.limits, "rows": min(program.rows, program.sequences)}


def _as_json(chosen: _Chosen, price: Price) -> dict[str, Any]:
    chip, (*launches, cache) = chosen.chip, price.lines
    return {
        "profile": chosen.profile,
        "chip": {**console.facts(chip, "name", "bandwidth", "reachable_bandwidth", "link"), "flops": chip.bf16},
        "programs": [
            {**console.facts(one, "decode", "arena"), **one.limits, "launches": len(one.launches)}
            for one in chosen.plan.programs
        ],
        "program": chosen.index,
        "sizes": dict(price.sizes),
        "launches": [
            {
                **console.facts(line, *_PRICED, "kernel", "grid"),
                **(console.facts(line.code, *_BINARY) if line.code is not None else {}),
            }
            for line in launches
        ],
        "cache": console.facts(cache, *_PRICED),
        **console.facts(price, "context", "bytes", "operations", "seconds", "tokens_per_s"),
        "seconds_per_token": price.seconds / price.sizes["tokens"],
    }


def _text(engine: str, chosen: _Chosen, price: Price) -> str:
    from ...runtime.plan.price import grouped

    chip, sizes = chosen.chip, price.sizes
    rows = [("launches", "label", "kernel", "grid", "bytes", "operations", "us", "share", "limit", *_BINARY)]
    rows += [_row(line, price, chip) for line in (*grouped(price.lines[:-1]), price.lines[-1])]
    programs = (
        f"{index} {'decode' if one.decode else 'mixed'} {one.tokens}" for index, one in enumerate(chosen.plan.programs)
    )
    return "\n".join(
        [
            f"{engine}: profile {chosen.profile}, program {chosen.index} "
            f"({'decode' if chosen.program.decode else 'mixed'}): {_count(sizes['tokens'], 'token')} of "
            f"{_count(sizes['sequences'], 'sequence')}, {_count(price.context, 'position')} of each in the cache",
            f"  {chip.name}: {chip.reachable_bandwidth / 1e12:.2f} TB/s of {chip.bandwidth / 1e12:.2f} can be reached, "
            f"{chip.bf16 / 1e12:.0f} TFLOP/s of 16-bit floats",
            f"  programs and their most tokens: {', '.join(programs)}",
            console.table(rows),
            f"  a step: {console.size(price.bytes)}, {_short(price.operations)} operations, "
            f"{price.seconds * 1e6:.1f} us at least, {price.seconds * 1e6 / sizes['tokens']:.1f} us a token",
            f"  at the limit {price.tokens_per_s:,.0f} tokens/s",
        ]
    )


def _row(line: Line, price: Price, chip: Chip) -> Sequence[str]:
    memory = line.bytes / chip.reachable_bandwidth >= line.operations / chip.bf16
    code = (str(getattr(line.code, name, "")) for name in _BINARY)
    return (
        str(line.count) if line.kernel else "",
        line.label,
        line.kernel,
        "x".join(map(str, line.grid)),
        console.size(line.bytes),
        _short(line.operations),
        f"{line.seconds * 1e6:.2f}",
        f"{100 * line.seconds / price.seconds if price.seconds else 0:.1f} %",
        "memory" if memory else "compute",
        *code,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(number: int) -> str:
    """A count for people, in powers of a thousand."""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"
