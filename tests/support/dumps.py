"""A toy model's legal graphs and launch plans as text: what a change of structure must leave as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from support.engines import SMALL

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.weights.random_source import RandomSource
from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.pipeline import lower
from llmc.compiler.targets import ProfileConfig
from llmc.passes.graph.graph import Canonical, Copied, Graph, Quantized
from llmc.recipes.recipe import QuantizeRule, with_flags
from llmc.runtime.dtypes import REDUCED_FORMATS
from llmc.runtime.engine_file.bind import Expr, to_json
from llmc.runtime.plan.between import RankOf
from llmc.runtime.plan.plan import Plan

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
    rank: tuple[str, int] = ("tp1", 0),
    records: Callable[[DecoderSpec], DecoderSpec] = lambda same: same,
) -> Graph:
    """The toy's graph after legalization for a target, in a weight format; fp8: of activations, and of the cache if it
    may have that.

    config: what differs in the toy's. records: what differs in what was read of it. rules: formats of some linears, by
    a glob on their names. rank: a split, and its rank.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TOY, **config}))
    source = open_source(folder, random_weights=0)
    spec = records(source.config.decoder)
    source = replace(source, config=replace(source.config, decoder=spec), source=RandomSource(spec.tensors()))
    recipe = with_flags(None, quantize=quantize, targets=[target], parallel=[rank[0]])
    # as a recipe may: flags are refused if they change nothing, as activations of weights that are not quantized
    recipe = replace(
        recipe,
        activations=fp8,
        kv=fp8 if fp8 in REDUCED_FORMATS else "none",
        rules=(*recipe.rules, *(QuantizeRule(*rule) for rule in rules.items())),
    )
    return [*lower(source, recipe, CONTEXT)[1].values()][rank[1]]


def drafted_plan(graph: Graph, fp8: str = "none", label: str = "sm_90", sm: int = 90, dtype: str = "bfloat16") -> Plan:
    """The launch plan of a graph for a chip, or one rank of it; nothing is compiled."""
    from llmc.compiler.targets.cuda.emit import draft  # brings Triton in

    return draft(graph, ProfileConfig(CONTEXT, BATCH, dtype, fp8, rank=RankOf.of(label)), sm)[0]


def graph_text(graph: Graph) -> str:
    """The graph as ONNX text, each weight's expression and each stored tensor's origin."""
    weights = [f"{name} = {_expression(expr)}" for name, expr in sorted(graph.bound().items())]
    stored = [
        f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {_origin(tensor)}" for tensor in graph.canonical.values()
    ]
    return "\n".join([graph.text(), "weights:", *weights, "", "stored, in the order of the file:", *stored, ""])


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
