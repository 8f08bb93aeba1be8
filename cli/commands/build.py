"""`llmc build`: a checkpoint becomes an engine file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ...runtime.errors import RecipeError
from ..common import console, extras, options, progress
from ..common.options import flag

if TYPE_CHECKING:
    from ...compiler.build import BuildReport
    from ...recipes.recipe import Recipe

Output = Annotated[
    Path, flag("--output", "The engine file to write, such as model.llmc.", short=("-o",), show_default=False)
]
MemoryLimit = Annotated[
    float | None, flag("--memory-limit", "Most memory to plan for, in GiB; by default what is available.")
]
Tactics = Annotated[
    list[Path] | None,
    flag("--tactics", "Tiles that llmc tune has measured for a GPU target, a YAML file; may be repeated."),
]
Dump = Annotated[Path | None, flag("--dump", "Write the graph after each pass that changed it into this folder.")]


def build(
    checkpoint: options.CheckpointPath,
    output: Output,
    recipe: options.RecipeName = None,
    quantize: options.Quantize = None,
    activations: options.Activations = None,
    kv: options.KvFormat = None,
    target: options.Targets = None,
    max_context: options.MaxContext = None,
    max_batch: options.MaxBatch = None,
    memory_limit: MemoryLimit = None,
    accept_config: options.AcceptConfig = None,
    random_weights: options.RandomWeights = None,
    tactics: Tactics = None,
    dump: Dump = None,
    verbose: options.Verbose = False,
    json: options.Json = False,
) -> None:
    """Compile a checkpoint into an engine file."""
    extras.need("build", "llmc build")
    if memory_limit is not None and not 0 < memory_limit < math.inf:
        raise RecipeError(f"--memory-limit {memory_limit:g}", fix="GiB, a number above 0")
    from ...compiler.checkpoint.account import check_checkpoint
    from ...compiler.checkpoint.checkpoint import open_checkpoint

    # Before the heavy imports: what is refused is refused at once, and hashing has the other core meanwhile.
    plan = chosen_recipe(
        recipe,
        quantize=quantize,
        activations=activations,
        kv=kv,
        targets=target,
        max_context=max_context,
        max_batch=max_batch,
    )
    source = open_checkpoint(checkpoint, accept_config=accept_config or (), random_weights=random_weights)
    check_checkpoint(source)
    source = source.start_digest()
    from ...compiler.build import build as build_engine
    from ...compiler.build import chat_template_of
    from ...compiler.targets.cuda.tuning.tactics import load

    tables = [load(path) for path in tactics or ()]
    console.note(f"{checkpoint} -> {output}\n{_plan(plan)}")
    report = build_engine(
        source,
        output,
        plan,
        memory_limit=memory_limit,
        dump=dump,
        tactics=tables,
        progress=progress.for_terminal(quiet=json),
    )
    if "tokenizer.json" in source.tokenizer and chat_template_of(source) is None:
        report = replace(report, warnings=(*report.warnings, "no chat template: `llmc run --chat` will be refused"))
    for warning in report.warnings:
        console.note(f"warning: {warning}")
    if json:
        console.out_json(_as_json(report))
    else:
        console.out(_as_text(report, verbose))


def chosen_recipe(
    recipe: str | None,
    *,
    targets: str | None,
    quantize: str | None = None,
    activations: str | None = None,
    kv: str | None = None,
    max_context: int | None = None,
    max_batch: int | None = None,
) -> Recipe:
    """The recipe named on the command line with the flags put over it; targets with commas between them."""
    from ...recipes.recipe import load_recipe, with_flags

    return with_flags(
        load_recipe(recipe) if recipe is not None else None,
        quantize=quantize,
        activations=activations,
        kv=kv,
        targets=[name.strip() for name in targets.split(",")] if targets is not None else None,
        max_context=max_context,
        max_batch=max_batch,
    )


def _plan(recipe: Recipe) -> str:
    formats = ", ".join([recipe.default_format, *(f"{rule.match}: {rule.format}" for rule in recipe.rules)])
    context = recipe.max_context or "the model's, at most 4096"
    narrow = f"; activations {recipe.activations}" if recipe.activations != "none" else ""
    narrow += f"; KV cache {recipe.kv}" if recipe.kv != "none" else ""
    targets = ", ".join(recipe.targets)
    return f"  weights {formats}{narrow}; targets {targets}; context {context}; batch {recipe.max_batch}"


def _as_json(report: BuildReport) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "peak_rss_bytes": report.peak_rss_bytes,
        "content_digest": report.content_digest,
        "stages": {name: round(seconds, 3) for name, seconds in report.stages},
        "passes": [
            {"phase": one.phase, "name": one.name, "fired": one.fired, "seconds": round(one.seconds, 3)}
            for one in report.passes
        ],
        "unused": dict(report.unused),
        "warnings": list(report.warnings),
    }


def _as_text(report: BuildReport, verbose: bool) -> str:
    lines = [console.table([("stage", "seconds"), *((name, f"{seconds:.2f}") for name, seconds in report.stages)])]
    if verbose:
        rows = [(one.phase, one.name, str(one.fired), f"{one.seconds:.3f}") for one in report.passes]
        lines.append(console.table([("phase", "pass", "fired", "seconds"), *rows]))
        lines += [f"  unused: {name} ({reason})" for name, reason in report.unused.items()]
    lines.append(
        f"{report.path}: {console.size(report.bytes)} in {report.seconds:.1f} s, "
        f"peak memory {console.size(report.peak_rss_bytes)}\ncontent digest {report.content_digest}"
    )
    return "\n".join(lines)
