"""The oracle's mixture of experts: decodes one chosen expert at a time, never a stack of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch

from ...passes.graph.experts import Mixture
from ...passes.graph.graph import Graph, attribute
from ...quantize import FORMATS
from ...runtime.dtypes import LIMITED
from ...runtime.engine_file.bind import Expr, Slice, Stored, ToF32
from ...runtime.numbers import to_f32

ReadExpert = Callable[[ir.Value, int], np.ndarray]
"""One expert's part of a stack [E, ...], raw."""
_ACTS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def mixture_result(
    graph: Graph, node: ir.Node, x: np.ndarray, experts: np.ndarray, weights: np.ndarray, read: ReadExpert
) -> np.ndarray:
    """What a `MoE` computes (`passes/graph/experts.py`) for x f32 [..., H], experts and weights [..., k]."""
    mixture = Mixture.of(node.overload)
    inputs = iter(node.inputs[3:])
    up, down = ({name: next(inputs) for name in names} for names in mixture.weights())
    count = int(up["weight"].shape[0])  # type: ignore[union-attr, index, arg-type]
    tokens = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, x.shape[-1])))
    chosen = experts.reshape(len(tokens), -1) - (attribute(node, "start") if mixture.part else 0)
    shares = torch.from_numpy(np.ascontiguousarray(weights.reshape(len(tokens), -1)))
    y = torch.zeros_like(tokens)
    for expert in np.unique(chosen[(chosen >= 0) & (chosen < count)]):
        rows, slots = (torch.from_numpy(one) for one in np.nonzero(chosen == expert))
        share = shares[rows, slots][:, None]
        given = tokens[rows] * share if mixture.input else tokens[rows]
        pairs = _linear(graph, given, up, mixture.up, int(expert), read)
        made = _linear(graph, _act(node, mixture, pairs), down, mixture.down, int(expert), read)
        y.index_add_(0, rows, made if mixture.input else made * share)
    return y.numpy().reshape(x.shape)


def of_expert(expr: Expr, expert: int) -> tuple[Expr, int]:
    """The part [1, ...] of one expert of a stack, as an expression of the row of the stored stack that is returned."""
    if isinstance(expr, Stored):
        return replace(expr, shape=(1, *expr.shape[1:])), expert
    if isinstance(expr, Slice) and expr.axis == 0:
        return of_expert(expr.of, expr.start + expert)
    assert isinstance(expr, Slice | ToF32)
    of, row = of_expert(expr.of, expert)
    return replace(expr, of=of), row


def _linear(
    graph: Graph, x: torch.Tensor, values: Mapping[str, ir.Value | None], fmt: str, expert: int, read: ReadExpert
) -> torch.Tensor:
    parts = {name: read(value, expert) for name, value in values.items() if value is not None}

    def plain(name: str) -> torch.Tensor:
        expr = graph.expr(values[name])
        assert expr is not None
        return torch.from_numpy(np.asarray(to_f32(parts[name], expr.dtype)))

    if fmt == "none":
        weight = plain("weight")
    else:
        weight = torch.from_numpy(FORMATS[fmt].dequantize({k: v for k, v in parts.items() if k != "bias"}))
    y = x @ weight.T
    return y + plain("bias") if "bias" in parts else y


def _act(node: ir.Node, mixture: Mixture, pairs: torch.Tensor) -> torch.Tensor:
    gate, up = pairs[:, 0::2], pairs[:, 1::2]
    if mixture.activation != LIMITED:
        return _ACTS[mixture.activation](gate) * up
    limit = attribute(node, "limit")
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(attribute(node, "alpha") * gate) * (up + 1)
