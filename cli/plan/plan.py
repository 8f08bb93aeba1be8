"""`llmc plan`: which split, format and machine suit a model and a goal, and why, before anything is built."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from ...runtime.errors import RecipeError, VerifyError
from ...runtime.machine import without_collections
from ..common import complete, console, extras, options, progress
from ..common.options import MACHINE, RECIPE, REPORT, flag
from . import told

Source = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|CONFIG.json",
        help="A Hugging Face folder, an id on the hub, or a config.json without weights.",
        show_default=False,
    ),
]
Machines = Annotated[
    str | None,
    flag(
        "--for",
        "Machines to choose from, as 8xh200 or 4xa100,2xh100; 16xh200 are two hosts.",
        default="all that llmc knows",
        metavar="LIST",
        group=MACHINE,
    ),
]
GoalText = Annotated[
    str | None,
    flag(
        "--goal",
        "latency, throughput or bytes, and limits: 'throughput,tpot<=40ms,ttft<=1s,gpus<=8'.",
        default="throughput",
        metavar="GOAL",
    ),
]
_TOKENS = "1024, at most half of the model's context"
Input = Annotated[int | None, flag("--input", "Tokens of a prompt.", default=_TOKENS, metavar="N")]
Output = Annotated[int | None, flag("--output", "Tokens of an answer.", default=_TOKENS, metavar="N")]
Context = Annotated[int | None, flag("--context", "Most tokens of a request.", default="input and output", metavar="N")]
Batch = Annotated[
    int | None,
    flag(
        "--batch", "Requests at once on the machine.", default="any number that fits, at most 1024 a copy", metavar="N"
    ),
]
Formats = Annotated[
    str | None,
    flag(
        "--quantize",
        "Weight formats to choose from, as fp8,int4 or none.",
        default="all",
        metavar="LIST",
        group=RECIPE,
        autocompletion=complete.formats,
    ),
]
_PRECISION = {"default": "fp8 beside quantized weights where the GPU multiplies FP8", "group": RECIPE}
Activations = Annotated[
    str | None,
    flag(
        "--activations",
        "Activations of large steps. Without it, 4-bit ones (W4A4) are tried too where the GPU multiplies them.",
        metavar="none|fp8|nvfp4|mxfp4",
        autocompletion=complete.activations,
        **_PRECISION,
    ),
]
Kv = Annotated[
    str | None, flag("--kv", "The KV cache.", metavar="none|fp8", autocompletion=complete.precisions, **_PRECISION)
]
Chart = Annotated[
    Path | None,
    flag("--chart", "Write the frontier as a picture, an .svg file.", default="none", metavar="FILE", group=REPORT),
]
All = Annotated[bool, flag("--all", "Show every candidate.", group=REPORT)]


@without_collections()
def plan(
    source: Source,
    machines: Machines = None,
    goal: GoalText = None,
    input: Input = None,
    output: Output = None,
    context: Context = None,
    batch: Batch = None,
    quantize: Formats = None,
    activations: Activations = None,
    kv: Kv = None,
    accept_config: options.AcceptConfig = None,
    chart: Chart = None,
    force: options.Force = False,
    every: All = False,
    json: options.Json = False,
) -> None:
    """Choose split, format and machine for a model, before it is built."""
    extras.need("cuda-build", "llmc plan")
    from ...compiler.deploy.asked import asked_of
    from ...compiler.kernel_imports import late_imports
    from ...runtime.files.records import plain
    from . import chart as charts

    asked = asked_of(
        machines,
        goal,
        input=input,
        output=output,
        context=context,
        batch=batch,
        quantize=quantize,
        activations=activations,
        kv=kv,
    )
    if chart is not None:
        charts.check(chart, source, force=force)
    elif force:
        raise RecipeError("expected --chart with --force")
    if every and json:
        console.note("llmc: --all changes nothing beside --json, which has every candidate")
    with progress.for_terminal(quiet=json).stage("plan"):
        with late_imports():
            from ...compiler.deploy.models import model_of
            from ...compiler.deploy.plan_model import plan_model
        made = plan_model(model_of(source, accept_config or ()), asked)
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()  # what was made is old now: the search for young cycles, of 0.1 s, need not visit it
    report = made.report
    for note in report.notes:
        console.note(f"llmc: {note}")
    if chart is not None:
        charts.write(chart, made, force=force)
    console.show(plain(report), told.text(report, every), json)
    if report.best is None:
        raise typer.Exit(VerifyError.exit_code)
