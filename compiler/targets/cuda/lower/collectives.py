"""Lowers the operators between ranks, and those that cut and add columns around them (`kernels/columns.py`).

Sums are made in place. Ranks gather and scatter equal parts, so a part has room for the widest one; what lies behind a
narrower part is moved, but never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate

import onnx_ir as ir

from .....passes.graph.graph import attribute, width
from .....passes.placement import spans
from ..call import CollectiveCall, Operand, product
from ..kernels import columns
from ..lowering import Lowering
from . import experts


def _all_reduce(at: Lowering, node: ir.Node) -> None:
    x, (given,), (result,) = at.operand(node.inputs[0]), node.inputs, node.outputs
    assert given is not None
    summed = x if len(given.uses()) == 1 else at.result(result, x.dtype)
    at.alias(result, summed)
    tp = at.profile.rank.tp
    # a ring scatters the sums, then gathers them
    link = f"({x.bytes}) * {2 * (tp - 1)} // {tp}"
    at.add(node, CollectiveCall("all_reduce", x, summed, product(*x.shape), link))


def _all_gather(at: Lowering, node: ir.Node) -> None:
    x, (result,) = at.operand(node.inputs[0]), node.outputs
    tp, rows, widest = at.profile.rank.tp, at.rows_of(result), _widest(at, node, width(result))
    part = at.widened(x, widest)
    parts = at.buffer(f"{result.name}.parts", x.dtype, tp, rows, widest)
    link = f"({part.bytes}) * {tp - 1}"
    at.add(node, CollectiveCall("all_gather", part, parts, product(rows, widest), link))
    at.add(node, columns.join_columns(parts, at.result(result, x.dtype)))


def _reduce_scatter(at: Lowering, node: ir.Node) -> None:
    x, (result,) = at.operand(node.inputs[0]), node.outputs
    whole = x.shape[-1]
    assert isinstance(whole, int)
    tp, rows, widest = at.profile.rank.tp, at.rows_of(result), _widest(at, node, whole)
    parts = at.buffer(f"{result.name}.parts", x.dtype, tp, rows, widest)
    at.add(node, columns.split_columns(x, parts))
    part = at.widened(at.result(result, x.dtype), widest)
    link = f"({part.bytes}) * {tp - 1}"
    at.add(node, CollectiveCall("reduce_scatter", parts, part, product(rows, widest), link))


def _widest(at: Lowering, node: ir.Node, whole: int) -> int:
    """Columns of the widest part."""
    sizes = [stop - start for start, stop in spans(whole, at.profile.rank.tp)]
    assert [*attribute(node, "sizes")] == sizes, f"{node.name}: parts of {attribute(node, 'sizes')}, not {sizes}"
    return sizes[0]


def _send(at: Lowering, node: ir.Node) -> None:
    (value,) = node.inputs
    if _is_cut(value) and value is not None and not at.computed(value):
        whole, start = _columns(at, value)
        at.add(node, columns.add(None, whole, at.result(value), start=start))
    x = at.operand(value)
    call = CollectiveCall("send", x, None, product(*x.shape), x.bytes, attribute(node, "peer"))
    at.add(node, call)


def _recv(at: Lowering, node: ir.Node) -> None:
    y = at.result(node.outputs[0])
    at.add(node, CollectiveCall("recv", None, y, product(*y.shape), y.bytes, attribute(node, "peer")))


def _add(at: Lowering, node: ir.Node) -> None:
    """A sum that no norm follows: with a bias, a shared expert or what is sent; one may be columns of a Split."""
    if experts.add_gated(at, node):
        return
    values = sorted(node.inputs, key=lambda value: _is_cut(value) or at.profile.graph.expr(value) is not None)
    (first, _), (other, start) = (_columns(at, value) for value in values)
    at.add(node, columns.add(first, other, at.result(node.outputs[0]), start=start))


def _is_cut(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "Split"


def _columns(at: Lowering, value: ir.Value | None) -> tuple[Operand, int]:
    """The operand that holds a value, and its first column there."""
    node = value.producer() if value is not None else None
    if node is None or not _is_cut(value):
        return at.operand(value), 0
    starts = accumulate((width(one) for one in node.outputs), initial=0)
    start = next(start for one, start in zip(node.outputs, starts, strict=False) if one is value)
    return at.operand(node.inputs[0]), start


def _nothing(at: Lowering, node: ir.Node) -> None:
    """Its readers see to it."""


LOWER: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "AllReduce": _all_reduce,
    "AllGather": _all_gather,
    "ReduceScatter": _reduce_scatter,
    "Send": _send,
    "Recv": _recv,
    "Add": _add,
    "Split": _nothing,
    "Constant": _nothing,
}
