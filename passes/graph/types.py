"""Types and shapes of results: every value of a logical graph has them, so it can be checked and cut at any value."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ...quantize import FORMATS
from .attention import rope_inputs
from .ops import ACTIVATIONS, DENSE, DOMAIN, format_of


def infer(node: ir.Node) -> None:
    """Set the types of a node's results, if llmc knows the operator; others take those of the values they replace."""
    rule = _INFER.get((node.domain, node.op_type))
    if rule is None or not node.inputs or node.inputs[0] is None or node.inputs[0].shape is None:
        return
    for value, (dtype, shape) in zip(node.outputs, rule(node), strict=True):
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)


Typed = list[tuple[ir.DataType, list]]


def _dims(value: ir.Value | None) -> list:
    assert value is not None and value.shape is not None, f"no shape for {value}"
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _float(*shapes: list) -> Typed:
    return [(ir.DataType.FLOAT, shape) for shape in shapes]


def _like_first(node: ir.Node) -> Typed:
    assert node.inputs[0] is not None and node.inputs[0].dtype is not None
    return [(node.inputs[0].dtype, _dims(node.inputs[0]))]


def _linear_type(node: ir.Node) -> Typed:
    return _float([*_dims(node.inputs[0])[:-1], _dims(node.inputs[1])[0]])


def _embedding_type(node: ir.Node) -> Typed:
    stored = _dims(node.inputs[1])[1]
    fmt = format_of(node)
    if fmt != DENSE:
        stored *= FORMATS[fmt].layouts[0].step
    return _float([*_dims(node.inputs[0]), stored])


def _attention_type(node: ir.Node) -> Typed:
    return _float(_dims(node.inputs[0]), _dims(node.inputs[3]), _dims(node.inputs[4]))


def _rope_attention_type(node: ir.Node) -> Typed:
    joined = [*_dims(node.inputs[0])[:-1], node.attributes["heads"].value * node.attributes["head_dim"].value]
    at = rope_inputs(node.overload).index("past_key")
    return _float(joined, _dims(node.inputs[at]), _dims(node.inputs[at + 1]))


def _gated_type(node: ir.Node) -> Typed:
    shape = _dims(node.inputs[0])
    return _float([*shape[:-1], shape[-1] // 2] if len(node.inputs) == 1 else shape)


def _gather_type(node: ir.Node) -> Typed:
    """The first value's shape with the sum of `sizes` along `axis`."""
    shape = _dims(node.inputs[0])
    shape[node.attributes["axis"].value] = sum(node.attributes["sizes"].value)
    return _float(shape)


def _scatter_type(node: ir.Node) -> Typed:
    """The first value's shape with one of `sizes` along `axis`: the shard's own, or one for each result."""
    sizes = node.attributes["sizes"].value
    own = sizes if node.overload else [sizes[node.attributes["shard"].value]]
    shapes = [_dims(node.inputs[0]) for _ in own]
    for shape, size in zip(shapes, own, strict=True):
        shape[node.attributes["axis"].value] = size
    return _float(*shapes)


def _route_type(node: ir.Node) -> Typed:
    shape = [*_dims(node.inputs[0])[:-1], node.attributes["k"].value]
    return [(ir.DataType.INT64, shape), (ir.DataType.FLOAT, shape)]


def _latent_type(node: ir.Node) -> Typed:
    width = node.attributes["heads"].value * node.attributes["value"].value
    return _float([*_dims(node.inputs[0])[:-1], width], _dims(node.inputs[7]))


_INFER: dict[tuple[str, str], Callable[[ir.Node], Typed]] = {
    (DOMAIN, "Linear"): _linear_type,
    (DOMAIN, "Embedding"): _embedding_type,
    (DOMAIN, "Positions"): lambda n: [(ir.DataType.INT64, _dims(n.inputs[0]))],
    (DOMAIN, "CachedAttention"): _attention_type,
    (DOMAIN, "LatentAttention"): _latent_type,
    (DOMAIN, "RopeAttention"): _rope_attention_type,
    (DOMAIN, "AddRMSNorm"): lambda n: _float(_dims(n.inputs[0]), _dims(n.inputs[0])),
    (DOMAIN, "GatedActivation"): _gated_type,
    (DOMAIN, "QuantizeActivations"): _like_first,
    **{(DOMAIN, op): _like_first for op in ("HeadNorm", "PartNorm", "SharedAttention", "RopeSharedAttention")},
    **{(DOMAIN, op): _like_first for op in ("Scale", "Softcap", "Activation", "MoE")},
    (DOMAIN, "Route"): _route_type,
    (DOMAIN, "AllReduce"): _like_first,
    (DOMAIN, "AllGather"): _gather_type,
    (DOMAIN, "ReduceScatter"): _scatter_type,
    (DOMAIN, "Send"): _like_first,
    (DOMAIN, "SelectRows"): lambda n: [(_like_first(n)[0][0], [*_dims(n.inputs[1]), _dims(n.inputs[0])[-1]])],
    ("", "RMSNormalization"): lambda n: _float(_dims(n.inputs[0])),
    ("", "LayerNormalization"): lambda n: _float(_dims(n.inputs[0])),
    ("", "RotaryEmbedding"): lambda n: _float(_dims(n.inputs[0])),
    ("", "Add"): _like_first,
    ("", "Mul"): _like_first,
    ("", "Sigmoid"): _like_first,
    **{("", op): _like_first for op, _ in ACTIVATIONS.values()},
}
