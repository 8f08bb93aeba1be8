"""Cuts weight expressions: what a shard has of the stored components of a linear, or of a mixture; and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..quantize import FORMATS
from ..quantize.format import Layout
from ..runtime.engine_file.bind import Expr, Slice, Stored, ToF32
from .graph.attention import EACH, SINKS
from .graph.experts import Mixture
from .graph.graph import MODULE, Builder, Graph, dims
from .graph.pointwise import ACTIVATIONS
from .placement import COLUMNS, ROWS, Cut, Placement, Span

BY_PARTS = {"Add", "Mul", "Scale", "HeadNorm", "SelectRows", "Activation", *(op for op, _ in ACTIVATIONS.values())}
"""Operators that compute a part of their result from the same part of their inputs."""
OVER_ALL = {"RMSNormalization", "LayerNormalization"}
"""Operators that need all of the last axis."""


def linear_parts(whole: Graph, components: Sequence[ir.Value | None], fmt: str, cut: Cut, shard: int) -> Iterator[Expr]:
    """A shard's part of each component of a weight [rows, columns], or of a bias; `fmt` is then none."""
    for value, layout in zip(components, _layouts(fmt), strict=True):
        yield _sliced(_stored(whole, value), layout, cut.axis, cut.spans[shard])


def per_head(node: ir.Node) -> int | None:
    """The input of a node that has a row or a number for each head, if one has."""
    if node.op_type in ("CachedAttention", "SharedAttention") and SINKS in node.overload:
        return len(node.inputs) - 1
    return 1 if node.op_type == "HeadNorm" and EACH in node.overload else None


def row_part(whole: Graph, value: ir.Value | None, start: int, stop: int) -> Expr:
    """Rows of a stored weight."""
    return Slice(_stored(whole, value), 0, start, stop)


def expert_parts(whole: Graph, node: ir.Node, placement: Placement, shard: int) -> tuple[int, list[Expr]]:
    """The first expert of a shard, and its part of each weight of a `MoE`, in the order of its inputs.

    Rows of gate and up take turns, so they are cut in pairs. The bias of down is added by the first shard of each group
    of experts; it is zero on the others, a tensor too, so that the graphs of all shards are the same.
    """
    mixture, cut = Mixture.of(node.overload), placement.mixtures[node.metadata_props[MODULE]]
    experts, (start, stop) = cut.experts[shard], cut.inner[shard]
    _, place = placement.split.group(shard)
    values, found = iter(node.inputs[3:]), list[Expr]()
    of_up, of_down = mixture.weights()
    for fmt, names, axis, span in (
        (mixture.up, of_up, ROWS, (2 * start, 2 * stop)),
        (mixture.down, of_down, COLUMNS, (start, stop)),
    ):
        layouts = [*_layouts(fmt), *([None] if mixture.bias else [])]
        for name, layout in zip(names, layouts, strict=True):
            own: Stored | Slice = _stored(whole, next(values))
            if placement.split.ep > 1:
                own = Slice(own, 0, *experts)
            if placement.split.tp == 1:
                found.append(own)
            elif name == "bias" and axis == COLUMNS:
                found.append(ToF32(own, 0.0 if place else 1.0))
            else:
                found.append(_sliced(own, layout, axis, span, first=1))
    return experts[0], found


def columns(b: Builder, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
    """Parts of the last axis of a value, so wide each."""
    parts = b("Split", value, b.ints(*sizes), outputs=len(sizes), axis=len(dims(value)) - 1)
    parts = parts if isinstance(parts, tuple) else (parts,)
    for part, size in zip(parts, sizes, strict=True):
        part.type, part.shape = value.type, ir.Shape([*dims(value)[:-1], size])
    return parts


def _layouts(fmt: str) -> Sequence[Layout | None]:
    """Of a format's components; None is one tensor of the weights themselves, or of a bias."""
    return FORMATS[fmt].layouts if fmt in FORMATS else (None,)


def _stored(whole: Graph, value: ir.Value | None) -> Stored:
    expr = whole.expr(value)
    assert isinstance(expr, Stored)
    return expr


def _sliced(of: Stored | Slice, layout: Layout | None, axis: int, span: Span, first: int = 0) -> Stored | Slice:
    """Rows or columns of one component of a weight [n, k] whose axes begin at `first`."""
    axes, step = ("nk", 1) if layout is None else (layout.axes, layout.step)
    if ("n", "k")[axis] not in axes:
        return of
    start, stop = span if axis == ROWS else (span[0] // step, span[1] // step)
    return Slice(of, first + axis, start, stop)
