"""Lowers each operator of a legal graph to kernel calls: one function per operator, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from ....passes.graph import ops
from ....passes.graph.graph import attribute
from .call import Operand
from .kernels import embed, gated, norm, pointwise, quantize_activations, quantize_fp4
from .kernels.linear import fp4
from .kernels.linear.choose import linear
from .lower import attend, collectives, experts, latent, neighbours, rowwise
from .lowering import CudaProfile, Lowering, Shared, StepShape, fp4_group
from .tuning.tactics import tile_key


def _embedding(at: Lowering, node: ir.Node) -> None:
    weights = tuple(map(at.operand, node.inputs[1:]))
    ids, start = at.buffers["tokens"], attribute(node, "start", None)
    (result,) = node.outputs
    users = [user for user, _ in result.uses()]
    scaled = users[0] if len(users) == 1 and users[0].op_type == "Scale" else None
    result, factor = (result, 1.0) if scaled is None else (scaled.outputs[0], attribute(scaled, "factor"))
    at.add(node, embed.embed(ids, weights, at.result(result), format=_format(node), start=start, factor=factor))


def _quantize_activations(at: Lowering, node: ir.Node) -> None:
    """Small steps are memory-bound, so their activations stay 16-bit, which is also more exact."""
    codes = node.outputs[0]
    if codes in at.quantized:  # an earlier kernel wrote the codes
        return
    x = at.operand(node.inputs[0])
    at.alias(codes, x)
    if at.wants_fp8(codes):
        quantize = quantize_fp4.quantize_fp4 if node.overload else quantize_activations.quantize_activations
        at.add(node, quantize(x, *at.quantized_result(codes)))


def _through_activation(value: ir.Value) -> tuple[ir.Value, str | None]:
    """If a gated activation is the only reader, fuse it: (output value, activation or None)."""
    users = [user for user, _ in value.uses()]
    if (
        len(users) == 1
        and users[0].op_type == "GatedActivation"
        and len(users[0].inputs) == 1
        and not value.is_graph_output()
    ):
        return users[0].outputs[0], _activation_name(users[0])
    return value, None


def _activation_name(node: ir.Node) -> str:
    return node.overload.removeprefix("merged_")


def _linear(at: Lowering, node: ir.Node) -> None:
    fmt, x, scales = _format(node), node.inputs[0], None
    assert x is not None
    operands = tuple(map(at.operand, node.inputs[1:]))
    weights, bias = (operands[:-1], operands[-1]) if ops.has_bias(node) else (operands, None)
    if x in at.quantized and fp4_group(x):
        _linear_fp4(at, node, weights, bias)
        return
    if x in at.quantized:
        codes, scales = at.quantized[x]
        result, activation = node.outputs[0], None
    else:
        codes, (result, activation) = at.operand(x), _through_activation(node.outputs[0])
    norm = None if x in at.quantized or activation else neighbours.following_norm(at, node)
    exact = ops.makes_logits(node) or experts.is_exact(node)
    y = at.result(result if norm is None else norm.outputs[1], "f32" if exact else None)
    residual, fused = neighbours.around(at, codes, y, result, norm, format=fmt, activation=activation)
    most = at.shape.limit(str(codes.shape[0]))
    stored = fmt if scales is None else "fp8"
    call = linear(
        *(codes, weights, y),
        format=fmt,
        max_tokens=most,
        sm=at.profile.sm,
        tile=lambda kind, n, k: at.profile.tiles.get(tile_key(kind, n, k, stored, most)),
        make=at.beside(y),
        expanded=lambda n, k: at.expanded(str(node.name), weights, n, k, format=fmt),
        counters=at.counters,
        scales=scales,
        bias=bias,
        activation=activation,
        residual=residual,
        fused=fused,
    )
    at.add(node, call)


def _linear_fp4(at: Lowering, node: ir.Node, weights: tuple[Operand, ...], bias: Operand | None) -> None:
    """Codes of a result are written in groups, so the activation's can be too."""
    x = node.inputs[0]
    assert x is not None
    (codes, scales), (result, activation) = at.quantized[x], _through_activation(node.outputs[0])
    y, y_scales = neighbours.result_or_quantized(at, result, fp4.LEAST_COLUMNS)
    at.alias(result, y)
    made = {"bias": bias, "activation": activation, "y_scales": y_scales}
    at.add(node, fp4.linear_fp4(codes, scales, weights, y, sm=at.profile.sm, **made))


def _rms_norm(at: Lowering, node: ir.Node) -> None:
    x, weight = map(at.operand, node.inputs)
    y, scales = neighbours.result_or_quantized(at, node.outputs[0])
    epsilon, order = attribute(node, "epsilon", 1e-5), neighbours.order_for(at, y, node.outputs[0])
    squares = neighbours.unfinished(at, y, epsilon) if neighbours.divides(at, node.outputs[0]) else None
    call = norm.rms_norm(x, weight, y, epsilon=epsilon, scales=scales, squares=squares, order=order)
    at.add(node, call)


def _add_rms_norm(at: Lowering, node: ir.Node) -> None:
    if at.computed(node.outputs[0]):  # fused into the linear before it
        return
    x, residual, weight = map(at.operand, node.inputs)
    (y, scales), total = neighbours.result_or_quantized(at, node.outputs[0]), at.result(node.outputs[1])
    epsilon = attribute(node, "epsilon", 1e-5)
    order = neighbours.order_for(at, y, node.outputs[0])
    at.add(node, norm.add_rms_norm(x, residual, weight, y, total, epsilon=epsilon, scales=scales, order=order))


def _gated(at: Lowering, node: ir.Node) -> None:
    if at.computed(node.outputs[0]):  # fused into the linear
        return
    if len(node.inputs) == 2:
        gate, up = map(at.operand, node.inputs)
        at.add(node, pointwise.gated_by(gate, up, at.result(node.outputs[0]), node.overload.partition("_")[2]))
        return
    y, scales = neighbours.result_or_quantized(at, node.outputs[0])
    assert scales is None or scales.dtype == "f32"  # FP4 linears apply the activation
    at.add(node, gated.gated(at.operand(node.inputs[0]), y, activation=_activation_name(node), scales=scales))


def _select_rows(at: Lowering, node: ir.Node) -> None:
    selected = node.inputs[0]
    assert selected is not None
    if at.shape.decode:  # needs the logits of every token
        if at.computed(selected):  # else a linear has begun the norm that follows
            at.alias(node.outputs[0], at.operand(selected))
        return
    x = at.operand(selected)
    at.add(node, norm.gather_rows(x, at.input("logits_indices", "i32", "rows"), at.result(node.outputs[0])))


def _format(node: ir.Node) -> str:
    name = ops.format_of(node)
    return "dense" if name == ops.DENSE else name


LOWER: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "Embedding": _embedding,
    "Linear": _linear,
    "QuantizeActivations": _quantize_activations,
    "RMSNormalization": _rms_norm,
    "AddRMSNorm": _add_rms_norm,
    "GatedActivation": _gated,
    "SelectRows": _select_rows,
    "RopeAttention": attend.rope_attention,
    "RopeSharedAttention": attend.rope_shared_attention,
    "MergedLatentAttention": latent.latent_attention,
    "FirstNorm": latent.first_norm,
    **rowwise.LOWER,
    **experts.LOWER,
    "Positions": lambda at, node: None,  # an input of the step
    **collectives.LOWER,
}


def lower(profile: CudaProfile, shape: StepShape, shared: Shared) -> Lowering:
    """The calls of a whole graph for one kind of step; after logits, of the sampling."""
    at = Lowering(profile, shape, shared)
    if any(node.op_type == "Embedding" for node in profile.graph.nodes):
        at.take_tokens()
    for node in profile.graph.nodes:
        LOWER[node.op_type](at, node)
    if profile.rank.is_last:
        at.sample(next(value for value in profile.graph.body.outputs if value.name == "logits"))
    return at
