"""Quantize the weights of linears, and the embedding tied to a quantized head, in the recipe's formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..quantize import FORMATS
from ..runtime.engine_file.bind import Stored
from ..runtime.errors import Unsupported
from .graph import ops
from .graph.experts import Mixture
from .graph.graph import BLOCK, KEPT, MODULE, ROLE, Canonical, Graph, Quantized
from .rewrite.pattern import Depth, Miss
from .rewrite.rule import Outcome, Pass, replace_value


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """A linear's weight becomes codes and scales; all other readers of its stored tensor use them too."""

    format_of: Callable[[str], str]
    """The format's name for a module's name, or "none"."""

    fires = (
        "(float[2,3,128] x, float[4,128] W, float[4] B) => (float[2,3,4] y) { y = llmc.Linear:f32_bias(x, W, B) }",
        "(int64[2,3] ids, float[8,128] T) => (float[2,3,8] y) "
        "{ e = llmc.Embedding:f32(ids, T) y = llmc.Linear:f32(e, T) }",
    )
    refuses = {
        "the weight is quantized already": (
            "(float[2,3,64] x, uint8[4,32] W, float[4,2] S) => (float[2,3,4] y) { y = llmc.Linear:int4(x, W, S) }"
        ),
    }
    tolerance = 1e-2
    """For int8, which the examples are tested in."""

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        shares = _groups(graph, self.format_of)
        for node in [n for n in graph.nodes if (n.domain, n.op_type) == (ops.DOMAIN, "Linear")]:
            module = node.metadata_props.get(MODULE, "")
            chosen = self.format_of(module)
            if node.metadata_props.get(ROLE) == KEPT:
                outcome.note(Miss("it decides which experts compute", Depth.OPERATOR), node)
                continue
            if ops.format_of(node) != ops.DENSE:
                outcome.note(Miss("the weight is quantized already", Depth.OPERATOR), node)
                continue
            if chosen == "none":
                outcome.note(Miss(f"{module} stays as it is", Depth.CHECKED), node)
                continue
            weight = node.inputs[1]
            assert weight is not None
            tensor = _tensor(graph, weight)
            del graph.canonical[tensor.name]  # the codes take its name
            for user in [n for n, _ in weight.uses()]:
                _quantize(graph, user, tensor, chosen, shares.get(tensor.name, (tensor.name,)))
            outcome.fired += 1
        for node in [n for n in graph.nodes if (n.domain, n.op_type) == (ops.DOMAIN, "MoE")]:
            outcome.fired += _quantize_experts(graph, node, self.format_of)
        if outcome.fired:
            graph.remove_dead()
        return outcome


def _groups(graph: Graph, format_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """For each linear's tensor the tensors of all linears of its input, parent module and format. These may be merged,
    so they share a global scale and lie next to each other in the file."""
    groups: dict[tuple[ir.Value | None, str, str], list[str]] = {}
    for node in graph.nodes:
        linear = (node.domain, node.op_type, node.overload.removesuffix("_bias")) == (ops.DOMAIN, "Linear", ops.DENSE)
        if linear and node.metadata_props.get(ROLE) != KEPT:
            module = node.metadata_props.get(MODULE, "")
            key = node.inputs[0], module.rpartition(".")[0], format_of(module)
            groups.setdefault(key, []).append(_tensor(graph, node.inputs[1]).name)
    return {name: tuple(names) for names in groups.values() for name in names}


def _tensor(graph: Graph, value: ir.Value | None) -> Stored:
    expr = graph.expr(value)
    if not isinstance(expr, Stored):
        raise ValueError(f"weight {value} is not one stored tensor")
    return expr


def _quantize(graph: Graph, node: ir.Node, tensor: Stored, name: str, shares: tuple[str, ...]) -> None:
    values = _components(graph, tensor, name, shares).values()
    b = graph.build(node.metadata_props[BLOCK], before=node)
    bias = (node.inputs[2],) if ops.has_bias(node) else ()
    new = b.llmc(
        node.op_type,
        *(node.inputs[0], *values, *bias),
        overload=ops.overload_of(name, bias=bool(bias)),
        name=node.metadata_props.get(MODULE, ""),
        role=node.metadata_props.get(ROLE, ""),
    )
    replace_value(node.outputs[0], new)


def _quantize_experts(graph: Graph, node: ir.Node, format_of: Callable[[str], str]) -> int:
    """Choose the formats of both stacks of a MoE; each expert's weight is quantized by itself. 1 if one changed."""
    mixture = Mixture.of(node.overload)
    inputs, made, changed = iter(node.inputs[3:]), [], {}
    for which, names in zip(("up", "down"), mixture.weights(), strict=True):
        values = {name: next(inputs) for name in names}
        if getattr(mixture, which) == "none":
            tensor = _tensor(graph, values["weight"])
            chosen = format_of(tensor.name.removesuffix(".weight"))
            if chosen != "none":
                del graph.canonical[tensor.name]  # the codes take its name
                biases = {name: value for name, value in values.items() if name == "bias"}
                values = {**_components(graph, tensor, chosen, (tensor.name,)), **biases}
                changed[which] = chosen
        made += values.values()
    if not changed:
        return 0
    b = graph.build(node.metadata_props[BLOCK], before=node)
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    new = b.llmc(
        "MoE",
        *(*node.inputs[:3], *made),
        overload=replace(mixture, **changed).overload,
        name=node.metadata_props.get(MODULE, ""),
        **attributes,
    )
    replace_value(node.outputs[0], new)
    return 1


def _components(graph: Graph, tensor: Stored, name: str, shares: tuple[str, ...]) -> dict[str, ir.Value]:
    """The stored components of a weight [N, K] in a format; those of a stack [E, N, K] are stacks of every expert's."""
    *lead, rows, columns = tensor.shape
    fmt = FORMATS[name]
    if reason := fmt.check(rows, columns):
        module = tensor.name.removesuffix(".weight")
        raise Unsupported(f"cannot store {module} as {name}", found=reason, fix=f"a recipe rule with `{module}: none`")
    stem, values = tensor.name.removesuffix("weight"), {}
    for part in fmt.components(rows, columns):
        canonical = Canonical(
            f"{stem}{part.name}",
            part.dtype,
            (*lead, *part.shape),
            Quantized(name, tensor.name, part.name, shares),
            group=f"{shares[0]}/{part.name}",
        )
        values[part.name] = graph.weight(f"{canonical.name}.{name}", graph.store(canonical))
    return values
