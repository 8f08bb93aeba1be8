"""`llmc inspect --launches`: what every launch of a step costs at the limits of a GPU, and the tokens/s left then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RecipeError
from ...runtime.progress import debug, debugging
from ..common import console

if TYPE_CHECKING:
    from ...runtime.chips import Chip
    from ...runtime.plan.plan import Plan
    from ...runtime.plan.price import Line, Price, Roofline


_TEXT = """\
{path}: profile {profile}, program {program} ({kind}): {tokens} of {sequences}, {positions} of each in the cache
  {chip[name]}: {chip[reachable_bandwidth]!t:.2f} TB/s of {chip[bandwidth]!t:.2f} can be reached, \
{chip[flops]!t:.0f} TFLOP/s of 16-bit floats{others}
  programs and their most tokens: {named}"""
_STEP = """\
  a step: {bytes!b}, {counted} operations, {us:.1f} us at least, {us_per_token:.1f} us a token
  at the limit {tokens_per_s:,.0f} tokens/s"""
_SETUP = "  once, when the weights are in place: launches {setup[launches]}, {setup[bytes]!b}"
_LINK = "  and {link_bytes!b} to other ranks, whose time is not counted"
_PRICED = ("label", "bytes", "operations", "seconds")
_BINARY = ("registers", "spills", "shared")


def show(
    engine: str,
    *,
    profile: str | None,
    gpu: str | None,
    program: int | None,
    tokens: int | None,
    context: int | None,
    json: bool,
) -> None:
    """Price a step of an engine's plan and print it; by default a decode step of one sequence, its cache half full.

    Of a split profile it is the plan of the named rank ("sm_90-tp2.rank-1"), by default of the first.
    """
    from ...runtime.chips import capability, runs_on, target_for
    from ...runtime.chips import chip as chip_of
    from ...runtime.cuda.names import chip_named
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.engine_file.split import label_of, parts_of
    from ...runtime.plan.plan import Plan
    from ...runtime.profiles import best, choose_gpu_profile, named, runnable

    with EngineFile.open(engine) as opened:
        profile, rank = (None, None) if profile is None else parts_of(profile)
        profile = named(opened, profile)
        name = choose_gpu_profile(opened, profile)
        chip = chip_named(gpu) if gpu is not None else None
        if chip is not None and profile is None:
            able = runnable(opened, (chip.sm,))
            name = best(opened, able) if able else name
        if rank is not None or opened.manifest.profiles[name].ranks is not None:
            name = label_of(name, rank or 0)
        facts, model = opened.profile(name), opened.manifest.model
        plan = Plan.from_json(opened.section(facts.graph), what=f"{engine}: {facts.graph}")
    chip = chip or chip_of(plan.sm)
    if not runs_on(plan.sm, chip.sm):
        raise RecipeError(
            f"cannot price profile {name!r} of {engine} on {chip.name}",
            found=f"needs compute capability {capability(plan.sm)}, {chip.name} has {capability(chip.sm)}",
            fix=f"a GPU of that capability after --for, or llmc build --target {target_for(chip.sm)}",
        )
    index, sizes = _step(plan, program, tokens)
    before = facts.max_context // 2 if context is None else context
    if before > facts.max_context:
        raise RecipeError(f"expected --context from 0 to {facts.max_context}", found=str(before))
    console.show(*_priced(engine, name, plan, chip, index, sizes, before, model.heads), json)


def debug_engine(path: Path) -> None:
    """What --debug tells of an engine that was just built: from 3 on every program's launches, at 4 the PTX too."""
    if not debugging(3):
        return
    from ...runtime.chips import SM, chip
    from ...runtime.cuda.contents import sources
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.engine_file.split import label_of
    from ...runtime.plan.plan import Plan

    with EngineFile.open(path) as engine:
        for name, profile in engine.manifest.profiles.items():
            if profile.target not in SM:
                continue
            name = name if profile.ranks is None else label_of(name, 0)
            graph = engine.profile(name).graph
            plan = Plan.from_json(engine.section(graph), what=f"{path}: {graph}")
            for index in range(len(plan.programs)):
                sizes, context = _step(plan, index, None)[1], profile.max_context // 2
                heads = engine.manifest.model.heads
                debug(3, _priced(str(path), name, plan, chip(plan.sm), index, sizes, context, heads)[1])
            debug(4, sources(engine, name))


def _priced(
    path: str, profile: str, plan: Plan, chip: Chip, index: int, sizes: Mapping[str, int], context: int, heads: int
) -> tuple[dict[str, Any], str]:
    """What a program's launches cost on a chip, as facts and as text."""
    from ...runtime.plan.price import Roofline, price

    limits = Roofline(chip.reachable_bandwidth, chip.bf16, chip.narrow_rates)
    found = price(plan, plan.programs[index], limits, sizes=sizes, context=context, heads=heads // plan.rank.tp)
    facts = {"path": path, "profile": profile, **_facts(plan, index, chip, found)}
    return facts, _text(facts, limits, found)


def _step(plan: Plan, number: int | None, tokens: int | None) -> tuple[int, dict[str, int]]:
    """The program and its sizes: full, but for logits of a prompt, of which only the last token's are wanted."""
    programs = plan.programs
    if number is not None and tokens is not None:
        raise RecipeError("expected --program or --tokens, not both")
    if tokens is not None:
        mixed = [(index, program.tokens) for index, program in enumerate(programs) if not program.decode]
        for index, most in mixed:
            if most >= tokens:
                return index, {"tokens": tokens, "sequences": 1, "rows": 1}
        raise RecipeError(f"expected --tokens from 1 to {max(dict(mixed).values(), default=0)}", found=str(tokens))
    index = number or 0
    if index >= len(programs):
        raise RecipeError(f"expected --program from 0 to {len(programs) - 1}", found=str(index))
    program = programs[index]
    return index, {**program.limits, "rows": min(program.rows, program.sequences)}


def _facts(plan: Plan, index: int, chip: Chip, price: Price) -> dict[str, Any]:
    *launches, cache = price.lines
    return {
        "chip": {**console.facts(chip, "name", "bandwidth", "reachable_bandwidth", "link"), "flops": chip.bf16},
        "programs": [
            {**console.facts(one, "decode", "arena"), **one.limits, "launches": len(one.launches)}
            for one in plan.programs
        ],
        "program": index,
        "sizes": dict(price.sizes),
        "launches": [
            {
                **console.facts(line, *_PRICED, "kernel", "grid", *_linked(plan)),
                **(console.facts(line.code, *_BINARY) if line.code is not None else {}),
            }
            for line in launches
        ],
        **_setup(plan),
        "cache": console.facts(cache, *_PRICED),
        **console.facts(price, "context", "bytes", "operations", "seconds", "tokens_per_s", *_linked(plan)),
        "seconds_per_token": price.seconds / price.sizes["tokens"],
    }


def _setup(plan: Plan) -> dict[str, Any]:
    """What is launched once, of a plan that does so."""
    from ...runtime.plan.formula import value

    if plan.setup is None:
        return {}
    moved = sum(value(one.bytes, plan.setup.limits) for one in plan.setup.kernels)
    return {"setup": {"launches": len(plan.setup.launches), "bytes": moved}}


def _text(facts: dict[str, Any], limits: Roofline, price: Price) -> str:
    from ...runtime.plan.price import grouped

    linked = "link_bytes" in facts
    head = ("launches", "label", "kernel", "grid", "bytes", "operations", "us", "share", "limit", *_BINARY)
    rows = [(*head, *(["link"] if linked else []))]
    rows += [_row(line, price, limits, linked) for line in (*grouped(price.lines[:-1]), price.lines[-1])]
    kinds = ["decode" if one["decode"] else "mixed" for one in facts["programs"]]
    named = (f"{i} {kind} {one['tokens']}" for i, (kind, one) in enumerate(zip(kinds, facts["programs"], strict=True)))
    used = {line.kernel for line in price.lines}
    title = console.fill(
        _TEXT,
        facts,
        kind=kinds[facts["program"]],
        tokens=console.counted(price.sizes["tokens"], "token"),
        sequences=console.counted(price.sizes["sequences"], "sequence"),
        positions=console.counted(price.context, "position"),
        named=", ".join(named),
        others="".join(f", {rate / 1e12:.0f} of {kernel}" for kernel, rate in limits.narrow.items() if kernel in used),
    )
    step = console.fill(
        _STEP,
        facts,
        counted=_short(price.operations),
        us=price.seconds * 1e6,
        us_per_token=price.seconds * 1e6 / price.sizes["tokens"],
    )
    link = [console.fill(_LINK, facts)] if linked else []
    once = [console.fill(_SETUP, facts)] if "setup" in facts else []
    return "\n".join([title, console.table(rows), step, *link, *once])


def _linked(plan: Plan) -> tuple[str, ...]:
    """The fact of a line or a price that only plans of ranks have."""
    return () if plan.rank_of is None else ("link_bytes",)


def _row(line: Line, price: Price, limits: Roofline, linked: bool) -> Sequence[str]:
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
        "memory" if limits.is_memory_bound(line) else "compute",
        *code,
        *([console.size(line.link_bytes) if line.link_bytes else ""] if linked else []),
    )


def _short(number: int) -> str:
    """A count for people, in powers of a thousand."""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"
