"""`llmc inspect --plan`: what every launch of a step costs at the limits of a GPU, and the tokens/s left then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError
from ..common import console

if TYPE_CHECKING:
    from ...runtime.chips import Chip
    from ...runtime.plan.plan import Binary, Plan, Program
    from ...runtime.plan.price import Line, Price


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
    from ...runtime.profiles import planned

    with EngineFile.open(engine) as opened:
        name = planned(opened, profile)
        chip = chip_named(gpu) if gpu is not None else None
        if chip is not None and profile is None:
            name = _profile_for(opened.manifest.profiles, chip) or name
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
    if json:
        console.out_json({"path": engine, **_as_json(chosen, found)})
    else:
        console.out(_text(engine, chosen, found))


def _profile_for(profiles: Mapping[str, Any], chip: Chip) -> str | None:
    """The profile that would run on a GPU, if there is one."""
    from ...runtime.chips import SM, runs_on

    fitting = [name for name, one in profiles.items() if one.target in SM and runs_on(SM[one.target], chip.sm)]
    return max(fitting, key=lambda name: SM[profiles[name].target], default=None)


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
    chip = chosen.chip
    return {
        "profile": chosen.profile,
        "chip": {
            "name": chip.name,
            "bandwidth": chip.bandwidth,
            "reachable_bandwidth": chip.reachable_bandwidth,
            "flops": chip.bf16,
        },
        "programs": [_program(program) for program in chosen.plan.programs],
        "program": chosen.index,
        "sizes": dict(price.sizes),
        "context": price.context,
        "launches": [_line(line) for line in price.lines[:-1]],
        "cache": _line(price.lines[-1]),
        "bytes": price.bytes,
        "operations": price.operations,
        "seconds": price.seconds,
        "seconds_per_token": price.seconds / price.sizes["tokens"],
        "tokens_per_s": price.tokens_per_s,
    }


def _program(program: Program) -> dict[str, Any]:
    return {"decode": program.decode, **program.limits, "launches": len(program.launches), "arena": program.arena}


def _line(line: Line) -> dict[str, Any]:
    facts = {"label": line.label, "bytes": line.bytes, "operations": line.operations, "seconds": line.seconds}
    if not line.kernel:
        return facts
    kernel = {"kernel": line.kernel, "grid": list(line.grid)}
    return {**facts, **kernel, **({} if line.binary is None else _binary(line.binary))}


def _binary(binary: Binary) -> dict[str, int]:
    return {"registers": binary.registers, "spills": binary.spills, "shared": binary.shared}


def _text(engine: str, chosen: _Chosen, price: Price) -> str:
    from ...runtime.plan.price import grouped

    chip, sizes = chosen.chip, price.sizes
    header = ("launches", "label", "kernel", "grid", "bytes", "operations", "us", "share", "limit")
    rows = [(*header, "registers", "spills", "shared")]
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
    binary = [str(number) for number in _binary(line.binary).values()] if line.binary is not None else ["", "", ""]
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
        *binary,
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
