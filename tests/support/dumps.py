"""A toy model's legal graphs and launch plans as text: what a change of structure must leave as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from support.engines import SMALL

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.pipeline import lower
from llmc.compiler.targets import ProfileConfig
from llmc.passes.graph.graph import Canonical, Copied, Graph, Quantized
from llmc.recipes.recipe import QuantizeRule, with_flags
from llmc.runtime.engine_file.bind import Expr, to_json
from llmc.runtime.plan.plan import Argument, Launch, Plan, Tensor

TOY = {**SMALL, "tie_word_embeddings": False, "vocab_size": 512, "max_position_embeddings": 256}
"""Two layers with an untied head; only shapes matter, so weights are random and never made."""
CONTEXT, BATCH = 128, 2
_NONE: Mapping[str, str] = MappingProxyType({})


def legal_graph(
    folder: Path,
    target: str,
    quantize: str,
    fp8: str = "none",
    config: Mapping[str, object] = _NONE,
    rules: Mapping[str, str] = _NONE,
) -> Graph:
    """The toy's graph after legalization for a target, in a weight format; fp8: of activations and cache.

    config: what differs in the toy's. rules: formats of some linears, by a glob on their names.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TOY, **config}))
    source = open_source(folder, random_weights=0)
    recipe = with_flags(None, quantize=quantize, activations=fp8, kv=fp8, targets=[target])
    recipe = replace(recipe, rules=(*recipe.rules, *(QuantizeRule(*rule) for rule in rules.items())))
    return lower(source, recipe, CONTEXT)[1][target]


def drafted_plan(graph: Graph, fp8: str = "none") -> Plan:
    """The launch plan of a graph for sm_90; nothing is compiled."""
    from llmc.compiler.targets.cuda.emit import draft  # brings Triton in

    return draft(graph, ProfileConfig(CONTEXT, BATCH, "bfloat16", fp8), 90)[0]


def graph_text(graph: Graph) -> str:
    """The graph as ONNX text, each weight's expression and each stored tensor's origin."""
    weights = [f"{name} = {_expression(expr)}" for name, expr in sorted(graph.bound().items())]
    stored = [
        f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {_origin(tensor)}" for tensor in graph.canonical.values()
    ]
    return "\n".join([graph.text(), "weights:", *weights, "", "stored, in the order of the file:", *stored, ""])


def plan_text(plan: Plan) -> str:
    """The plan with formulas; offsets, the kernels' digest and machine code are left out."""
    head = (
        f"sm_{plan.sm} {plan.activation} block_tokens={plan.block_tokens} max_blocks={plan.max_blocks} pdl={plan.pdl}"
    )
    rings = [f"window {one.window}: a ring of {one.blocks} blocks" for one in plan.caches if one.window is not None]
    lines = [head, *rings, "", *_tensors(plan.tensors)]
    for program in plan.programs:
        kind = "decode" if program.decode else "mixed"
        lines += ["", f"{kind}: tokens {program.tokens}, sequences {program.sequences}, rows {program.rows}"]
        lines += _tensors(program.buffers)
        for launch in program.launches:
            lines += _launch(plan, launch)
    return "\n".join([*lines, ""])


def _expression(expr: Expr) -> str:
    return json.dumps(to_json(expr))


def _origin(tensor: Canonical) -> str:
    origin = tensor.origin
    if isinstance(origin, Copied):
        return f"copied from {origin.tensor}, group {tensor.group}"
    if isinstance(origin, Quantized):
        shares = f", shared with {', '.join(origin.shares)}" if len(origin.shares) > 1 else ""
        return f"{origin.format} {origin.suffix} of {origin.tensor}{shares}, group {tensor.group}"
    return f"{origin.how}, group {tensor.group}"


def _tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    return [f"  {one.kind} {name} {one.dtype} [{', '.join(one.shape)}]" for name, one in sorted(tensors.items())]


def _launch(plan: Plan, launch: Launch) -> list[str]:
    module = plan.modules[launch.module]
    arguments = ", ".join(map(_argument, launch.arguments))
    constants = " ".join(f"{name}={value!r}" for name, value in module.constants.items())
    return [
        f"  {launch.label}: {module.kernel}({arguments})",
        f"    grid [{', '.join(launch.grid)}], writes {', '.join(launch.writes)}",
        f"    bytes {launch.bytes}; operations {launch.operations}",
        f"    {constants} warps={module.warps} stages={module.stages} types={','.join(module.types)}",
    ]


def _argument(argument: Argument) -> str:
    given = (argument.tensor, argument.size, argument.integer, argument.real)
    return next(str(one) for one in given if one is not None)
