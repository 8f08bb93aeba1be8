"""`llmc build`: a checkpoint becomes an engine file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from ...recipes.flags import BuildFlags
from ..common import console, extras, options, progress
from ..common.options import flag
from ..judge import forecast
from . import launches

if TYPE_CHECKING:
    from ...compiler.engine.report import BuildReport
    from ...compiler.planner.build_price import BuildPrice
    from ...recipes.recipe import Recipe

Output = Annotated[
    Path,
    flag(
        "--output", "The engine file to write, such as model.llmc.", short=("-o",), metavar="FILE", show_default=False
    ),
]
MemoryLimit = Annotated[
    str | None,
    flag(
        "--memory-limit",
        "Most memory of the build, as 500M, 4GB or 0.5GiB.",
        default="what is free",
        metavar="SIZE",
        group=options.MACHINE,
    ),
]
MaxShardSize = Annotated[
    str | None,
    flag(
        "--max-shard-size",
        "Largest size of a file, as 500M, 4GB or 0.5GiB; a larger engine is split into several.",
        default="one file of any size",
        metavar="SIZE",
    ),
]
ChatTemplateFile = Annotated[
    Path | None,
    flag("--chat-template", "A jinja file, stored in the engine.", default="the checkpoint's", metavar="FILE"),
]
Tactics = Annotated[
    list[Path] | None,
    flag(
        "--tactics",
        "Tiles that llmc tune has measured for a GPU target; may be repeated.",
        default="those of llmc",
        metavar="FILE",
        group=options.RECIPE,
    ),
]
Report = Annotated[
    Path | None,
    flag(
        "--report",
        "Write what was built to a .json file, or to a .md file for a CI job's summary.",
        default="none",
        metavar="FILE",
        group=options.REPORT,
    ),
]


_FORECAST = """\
predicted / actual: {expected.seconds:.1f} / {seconds:.1f} s ({time:.2f}), \
memory {expected.peak_bytes!b} / {peak_rss_bytes!b} ({memory:.2f}), \
size {expected.bytes!b} / {bytes!b} ({size:.3f})"""
ForMachine = Annotated[
    str | None,
    flag(
        "--for",
        "The machine that --parallel auto or --quantize auto choose for, such as 8xh200.",
        default="none",
        metavar="MACHINE",
        group=options.MACHINE,
    ),
]
GoalText = Annotated[
    str | None,
    flag(
        "--goal",
        "What they choose by, as llmc plan takes it: 'latency', 'throughput,tpot<=40ms'.",
        default="throughput",
        metavar="GOAL",
        group=options.RECIPE,
    ),
]


@options.takes(options.BUILD_FLAGS)
def build(
    checkpoint: options.CheckpointPath,
    output: Output,
    recipe: options.RecipeName = None,
    memory_limit: MemoryLimit = None,
    max_shard_size: MaxShardSize = None,
    accept_config: options.AcceptConfig = None,
    random_weights: options.RandomWeights = None,
    chat_template: ChatTemplateFile = None,
    tactics: Tactics = None,
    dump: options.Dump = None,
    machine: ForMachine = None,
    goal: GoalText = None,
    force: options.Force = False,
    report: Report = None,
    verbose: options.Verbose = False,
    json: options.Json = False,
    **flags: Unpack[BuildFlags],
) -> None:
    """Compile a checkpoint into an engine file.

    After `llmc doctor --measure` it also says what was predicted.
    """
    extras.need("build", "llmc build")
    from ...compiler.checkpoint.account import open_source
    from ...compiler.deploy.auto import auto_of
    from ...recipes.recipe import with_flags
    from ...runtime.engine_file.file import ENGINE
    from ...runtime.files.outputs import check_output, require_distinct
    from ...runtime.machine import size_bytes
    from ..judge import report as reports

    # Before the heavy imports: what is refused is refused at once, and hashing has the other core meanwhile.
    auto = auto_of(recipe, flags, machine, goal, ("--for", "--goal"))
    plan = with_flags(recipe, **flags) if auto is None else auto.recipes[0]
    limit = None if memory_limit is None else size_bytes(memory_limit)
    largest = None if max_shard_size is None else size_bytes(max_shard_size, "a size of files")
    inputs = [checkpoint, *([] if recipe is None else [recipe]), *(tactics or ())]
    inputs += [] if chat_template is None else [chat_template]
    require_distinct({"the engine": output, "the report": report, "the dump": dump})
    check_output(output, ENGINE, inputs, force=force)
    if report is not None:
        reports.check(report, inputs, force=force)
    shown = progress.for_terminal(quiet=json)
    with shown.stage("start"):
        source = open_source(checkpoint, accept_config or (), random_weights, chat_template)
        said = ""
        if auto is not None:
            from ...compiler.deploy.choice import decide

            plan, chosen = decide(auto, source)
            said = f"\n  {chosen}"
        console.note(f"{checkpoint} -> {output}\n{_plan(plan)}{said}")
        from ...compiler.build import build as build_engine
        from ...compiler.targets.cuda.tuning.tactics import load_table

        tables = [load_table(path) for path in tactics or ()]
        predicted = forecast.of_build(source, plan, limit)
    kernels = forecast.Kernels(shown)
    built = build_engine(
        source,
        output,
        plan,
        memory_limit=limit,
        max_shard_size=largest,
        dump=dump,
        tactics=tables,
        force=force,
        progress=kernels,
    )
    if predicted is not None:
        predicted = predicted.with_kernels(kernels.count)
    launches.debug_engine(output)
    for warning in built.warnings:
        console.warn(warning)
    if verbose and json:
        console.note("llmc: --verbose changes nothing beside --json, which shows all of a build")
    facts = _as_json(built, predicted)
    if report is not None:
        reports.write(report, checkpoint, facts, force=force)
    console.show(facts, _as_text(built, predicted, verbose), json)


def _plan(recipe: Recipe) -> str:
    formats = ", ".join([recipe.default_format, *(f"{rule.match}: {rule.format}" for rule in recipe.rules)])
    context = recipe.max_context or "the model's, at most 4096"
    fewer_bits = f"; activations {recipe.activations}" if recipe.activations != "none" else ""
    fewer_bits += f"; KV cache {recipe.kv}" if recipe.kv != "none" else ""
    targets = ", ".join(split.profile(target) for target in recipe.targets for split in recipe.splits)
    return f"  weights {formats}{fewer_bits}; targets {targets}; context {context}; batch {recipe.max_batch}"


def _as_json(report: BuildReport, predicted: BuildPrice | None) -> dict[str, Any]:
    return {
        **console.facts(report, "bytes", "peak_rss_bytes", "content_digest"),
        "path": str(report.path),
        "files": [str(path) for path in report.files],
        "seconds": round(report.seconds, 3),
        "predicted": None
        if predicted is None
        else {
            "seconds": round(predicted.seconds, 3),
            "peak_rss_bytes": predicted.peak_bytes,
            "bytes": predicted.bytes,
            "stages": {name: round(seconds, 3) for name, seconds in predicted.stages.items()},
        },
        "stages": {name: round(seconds, 3) for name, seconds in report.stages},
        "passes": [
            {**console.facts(one, "phase", "name", "fired"), "seconds": round(one.seconds, 3)} for one in report.passes
        ],
        "unused": dict(report.unused),
        "warnings": list(report.warnings),
    }


def _as_text(report: BuildReport, predicted: BuildPrice | None, verbose: bool) -> str:
    lines = [console.table([("stage", "seconds"), *((name, f"{seconds:.2f}") for name, seconds in report.stages)])]
    if verbose:
        rows = [(one.phase, one.name, str(one.fired), f"{one.seconds:.3f}") for one in report.passes]
        lines.append(console.table([("phase", "pass", "fired", "seconds"), *rows]))
        lines += [f"  unused: {name} ({reason})" for name, reason in report.unused.items()]
    files = f" of {len(report.files)} files" if len(report.files) > 1 else ""
    lines.append(
        f"{report.path}: {console.size(report.bytes)}{files} in {report.seconds:.1f} s, "
        f"peak memory {console.size(report.peak_rss_bytes)}\ncontent digest {report.content_digest}"
    )
    if predicted is not None:
        lines.append(
            console.fill(
                _FORECAST,
                console.facts(report, "seconds", "peak_rss_bytes", "bytes"),
                expected=predicted,
                time=predicted.seconds / report.seconds,
                memory=predicted.peak_bytes / report.peak_rss_bytes,
                size=predicted.bytes / report.bytes,
            )
        )
    return "\n".join(lines)
