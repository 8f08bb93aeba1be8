"""`llmc doctor`: what this machine and installation can do, and which profiles of an engine fit it."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...runtime.errors import DISTRIBUTION, RecipeError, ResourceError, install_hint
from ..common import console, extras, huge_pages, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.profiles import Gpu

_TOO_LARGE = "one sequence of {max_context} tokens needs {one!b}, {gpu} has {usable_bytes!b} free of {gpu_bytes!b}"
_MEMORY = """\
    memory of {gpu}: {gpu_bytes!b}, {usable_bytes!b} of it for: weights {weights!b}, \
{max_batch} x {max_context} tokens {caches!b}, buffers {buffers!b}
"""
_ENOUGH = "    enough; the largest batch that fits is {largest_batch}"
_TOO_LITTLE = "    too little for a batch of {max_batch}: llmc run --max-batch {largest_batch}"
_RANK = "    rank {rank}: {private!b} for weights, {cache!b} for each sequence of the whole context"
_GPU_RANK = """\
    rank {rank} on {gpu}: {weights!b} for weights, {cache_per_sequence!b} for each sequence of the whole context, \
{buffers!b} for buffers"""
_MACHINE = """\
llmc {llmc}, Python {python}, {system}
  {versions}
  {cpu}: {threads} thread{threads!s}
  memory {memory_bytes!b}, available {memory_available_bytes!b}
  ONNX Runtime providers: {all_providers}"""
_MEASURED = "  measured on {date} with {threads} thread{threads!s}: {read_bytes_per_s!g:.1f} GB/s read of memory"
PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "tokenizers", "jinja2", "torch", "onnx", "onnx-ir")


def doctor(
    engine: Annotated[
        str | None, typer.Argument(metavar="ENGINE", help="An engine, to see which of its profiles fit.")
    ] = None,
    target: options.For = None,
    measure: Annotated[
        bool,
        flag("--measure", "Measure this CPU and how it builds, in a minute, so that speeds can be predicted."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Show what this machine and installation can do, and which profiles of an engine run here or elsewhere."""
    if target is not None and engine is None:
        raise RecipeError("expected ENGINE with --for", fix=f"llmc doctor ENGINE --for {target}")
    if measure:
        if target is not None:
            raise RecipeError("expected --measure without --for", found="another machine", fix="llmc doctor --measure")
        _measure(quiet=json)
    facts = _facts()
    if engine is not None:
        facts["engine"] = _engine_facts(engine, target)
    about_here = target is None
    console.show(facts, _text(facts) if about_here else "\n".join(_engine_lines(facts["engine"])), json)


def _measure(quiet: bool) -> None:
    """Measure this machine, and keep the facts in the cache folder.

    Raises:
        ResourceError: there is no folder for them, or a build fails.
    """
    from ...runtime.costs import measure
    from ...runtime.costs.facts import facts_path, keep_facts
    from ...runtime.cpu.executor import thread_count
    from ...runtime.machine import cpu_name
    from ..facts import small_builds

    threads = thread_count(None)
    path = facts_path(cpu_name(), threads)
    if path is None:
        raise ResourceError("cannot keep facts of this machine", found="no cache folder", fix="LLMC_CACHE=FOLDER")
    huge_pages.restart()  # as `llmc run` and `llmc bench` do for large engines
    shown = progress.for_terminal(quiet)
    with shown.stage("kernels", measure.STEPS, "of them") as advance:
        found = measure.measure(threads, advance)
    if absent := extras.missing("build"):
        console.note(f"llmc: builds are not measured without {', '.join(absent)}: {install_hint('build')}")
    else:
        with shown.stage("builds", small_builds.STEPS, "of them") as advance:
            found = replace(found, build=small_builds.measure(advance))
    if keep_facts(found) is None:
        raise ResourceError("cannot keep facts of this machine", found=f"{path.parent} cannot be written")


def _facts() -> dict[str, Any]:
    from ...runtime import machine
    from ...runtime.costs.facts import load_facts
    from ...runtime.cpu.ort import onnxruntime
    from ...runtime.files.records import plain

    memory = machine.system_memory()
    return {
        "llmc": metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {one.name: one.version for name in PACKAGES for one in metadata.distributions(name=name)},
        "missing": {extra: list(absent) for extra in extras.EXTRAS if (absent := extras.missing(extra))},
        "cpu": machine.cpu_name(),
        "threads": machine.cpu_count(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "providers": onnxruntime.get_available_providers(),
        "measured": None if (found := load_facts()) is None else plain(found),
    }


def _engine_facts(path: str, where: str | None) -> dict[str, Any]:
    """Which profiles run here, or on the machine of `--for`, and which GPU memory they take there."""
    from ...runtime.chips import SM, runs_on
    from ...runtime.cuda.names import CPU, NATIVE, chip_named
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.engine_file.ranks import split_of
    from ...runtime.profiles import best, fits, gpus
    from ...runtime.ranks.facts import facts_of_ranks

    asked = NATIVE if where is None else where.lower()
    there = None if asked == NATIVE else () if asked == CPU else (chip_named(asked),)
    with EngineFile.open(path) as engine:
        reasons = fits(engine, there)
        able = [name for name, reason in reasons.items() if not reason]
        first = best(engine, able) if able else None  # what `llmc run` takes; it does not weigh memory
        memory, ranks = {}, {}
        for name, profile in engine.manifest.profiles.items():
            sm = SM.get(profile.target)
            if sm is not None and not reasons[name]:
                usable = [one for one in (gpus() if there is None else there) if runs_on(sm, one.sm)]
                labels = split_of(profile, path).labels(profile.target)
                each = [
                    _memory(engine, label, usable[at % len(usable)], len(labels)) for at, label in enumerate(labels)
                ]
                memory[name] = min(each, key=lambda one: one["largest_batch"])
                reasons[name] = "" if memory[name]["largest_batch"] else _filled(_TOO_LARGE, memory[name])
                if profile.ranks is not None:
                    keys = ("gpu", "weights", "buffers", "cache_per_sequence", "largest_batch")
                    ranks[name] = [{"rank": at} | {key: one[key] for key in keys} for at, one in enumerate(each)]
            elif sm is None and name in able and profile.ranks is not None:
                found = facts_of_ranks(engine, name)
                ranks[name] = [console.facts(one, "rank", "private", "cache") for one in found]
    fitting = [name for name, reason in reasons.items() if not reason]
    return {
        "path": path,
        **({} if where is None else {"for": where}),
        "profile": first if first in fitting else None,
        "fit": fitting,
        "do_not_fit": {name: reason for name, reason in reasons.items() if reason},
        **({"memory": memory} if memory else {}),
        **({"ranks": ranks} if ranks else {}),
    }


def _memory(engine: EngineFile, profile: str, gpu: Gpu, ranks: int) -> dict[str, Any]:
    """Bytes of a profile, or of one of its ranks, on a GPU with its largest batch, and the batch that just fits."""
    from ...runtime.plan.plan import Plan
    from ...runtime.plan.price import memory_on, usable

    facts = engine.profile(profile)
    plan = Plan.from_json(engine.section(facts.graph), what=f"{engine.path}: {facts.graph}")
    room = usable(gpu.memory, ranks)
    need = memory_on(room, plan, max_batch=facts.max_batch)
    largest = need.sequences(room)
    return {
        "gpu": gpu.name,
        "gpu_bytes": gpu.memory,
        "usable_bytes": room,
        "weights": need.weights,
        "buffers": need.buffers,
        "cache_per_sequence": need.sequence,
        "max_context": facts.max_context,
        "max_batch": facts.max_batch,
        "bytes": need.total(facts.max_batch),
        "fits": largest >= facts.max_batch,
        "largest_batch": largest,
    }


def _filled(template: str, memory: dict[str, Any]) -> str:
    cache = memory["cache_per_sequence"]
    one = memory["weights"] + memory["buffers"] + cache
    return console.fill(template, memory, one=one, caches=memory["max_batch"] * cache)


def _engine_lines(engine: dict[str, Any]) -> list[str]:
    where = f" on {engine['for']}" if "for" in engine else ""
    if engine["profile"]:
        lines = [f"{engine['path']}{where}: runs as {engine['profile']}"]
    elif engine["fit"]:
        lines = [f"{engine['path']}{where}: runs with --profile {engine['fit'][0]} only"]
    else:
        lines = [f"{engine['path']}: does not run{where or ' here'}"]
    for name in engine["fit"]:
        lines.append(f"  {name}: fits")
        if name in engine.get("memory", {}):
            memory = engine["memory"][name]
            lines.append(_filled(_MEMORY + (_ENOUGH if memory["fits"] else _TOO_LITTLE), memory))
        each = _GPU_RANK if name in engine.get("memory", {}) else _RANK
        lines += [console.fill(each, rank) for rank in engine.get("ranks", {}).get(name, ())]
    return lines + [f"  {name}: does not fit: {reason}" for name, reason in engine["do_not_fit"].items()]


def _text(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    lines = [console.fill(_MACHINE, facts, versions=versions, all_providers=", ".join(facts["providers"]))]
    for extra, absent in facts["missing"].items():
        lines.append(f"  extra {extra!r} is not installed ({', '.join(absent)}): {install_hint(extra)}")
    if facts["measured"] is not None:
        lines.append(console.fill(_MEASURED, facts["measured"]))
    return "\n".join(lines + (_engine_lines(facts["engine"]) if "engine" in facts else []))
