"""Lowers mixtures of experts: tokens choose, rows are sorted by expert, two grouped linears, a sum for each token.

What every token has besides, as a shared expert, is added by the last launch if it is computed by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import onnx_ir as ir

from .....passes.graph.experts import BIASED, GROUPED, NORMED, SCALED, Mixture
from .....passes.graph.graph import attribute, width
from .....runtime.plan.formula import value as value_of
from ..call import Operand
from ..kernels.linear.tiles import Tile
from ..kernels.moe.combine import gated_sum, moe_combine
from ..kernels.moe.linear import Ending, moe_linear
from ..kernels.moe.route import route
from ..kernels.moe.selection import Routing
from ..kernels.moe.sort import Sorted, sort_rows
from ..kernels.moe.tiles import Product, tiles_of, whole_if_many
from ..lowering import Lowering

_EXACT = ("Route", "Sigmoid")
_PARAMETERS = ((BIASED, "bias"), (SCALED, "scales"))
"""Inputs of `Route` after its logits, by the flag that they come with, in their order."""


def is_exact(linear: ir.Node) -> bool:
    """Whether the result of a linear stays float32: it chooses experts, or opens the gate of one."""
    users = [user for user, _ in linear.outputs[0].uses()]
    return bool(users) and all(user.op_type in _EXACT for user in users)


def gated_by_sigmoid(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """(x, g) of x * sigmoid(g), with g [..., 1]; None for all else."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Mul":
        return None
    for one, other in (node.inputs, node.inputs[::-1]):
        opening = other.producer() if other is not None else None
        if opening is not None and opening.op_type == "Sigmoid" and width(other) == 1:
            (gate,) = opening.inputs
            assert one is not None and gate is not None
            return one, gate
    return None


def multiply_by_gate(at: Lowering, node: ir.Node) -> None:
    """x * sigmoid(g); left to the sum that reads it, if one does."""
    (y,) = node.outputs
    pair = gated_by_sigmoid(y)
    assert pair is not None
    if not _is_summand(y):
        x, gate = map(at.operand, pair)
        at.add(node, gated_sum(None, x, gate, at.result(y)))


def add_gated(at: Lowering, node: ir.Node) -> bool:
    """Whether this sum is lowered here: with a summand of x * sigmoid(g), or by the mixture before it."""
    (y,) = node.outputs
    if at.computed(y):
        return True
    for one, other in (node.inputs, node.inputs[::-1]):
        pair = gated_by_sigmoid(other)
        if pair is not None and other is not None and not at.computed(other):
            x, gate = map(at.operand, pair)
            at.add(node, gated_sum(at.operand(one), x, gate, at.result(y)))
            return True
    return False


def _is_summand(value: ir.Value) -> bool:
    users = [user for user, _ in value.uses()]
    return len(users) == 1 and users[0].op_type == "Add" and not value.is_graph_output()


def _route(at: Lowering, node: ir.Node) -> None:
    kind, *flags = node.overload.split("_")
    names = {"factor", "jitter", *(["least"] if NORMED in flags else [])}
    names |= {"groups", "kept", "best"} if GROUPED in flags else set()
    given = {name: attribute(node, name) for name in names if name in node.attributes}
    logits, *others = map(at.operand, node.inputs)
    given_to = dict(zip((name for flag, name in _PARAMETERS if flag in flags), others, strict=True))
    experts, weights = (at.result(one, dtype) for one, dtype in zip(node.outputs, ("i32", "f32"), strict=True))
    routing = Routing(kind, normed=NORMED in flags, **given)
    at.add(node, route(logits, experts, weights, routing, **given_to))


def _mixture(at: Lowering, node: ir.Node) -> None:
    mixture = Mixture.of(node.overload)
    x, experts, weights = map(at.operand, node.inputs[:3])
    stacks = iter(node.inputs[3:])
    up, down = ({name: at.operand(next(stacks)) for name in names} for names in mixture.weights())
    make = partial(_buffer, at, node)
    inside = up["weight"].shape[1]
    assert isinstance(inside, int)
    products = [_product(up, mixture.up, width(node.inputs[0])), _product(down, mixture.down, inside // 2)]
    count, tokens, chosen, of = up["weight"].shape[0], str(x.shape[0]), width(node.inputs[1]), _experts_of_all(node)
    assert isinstance(count, int)
    most = at.shape.limit(tokens)
    busy = min(count, most * min(count, chosen))
    tiles = tiles_of(products, each=-(-most * chosen // of), busy=busy, sm=at.profile.sm)
    tables = Sorted.made(make, tokens, count, chosen, tiles[0].block_m, of)
    at.add(node, sort_rows(experts, tables, begin=attribute(node, "start") if mixture.part else 0))
    inner = make("inner", at.profile.activation, tables.rows, products[1].k)
    ending = Ending(mixture.activation, attribute(node, "alpha", 0.0), attribute(node, "limit", 0.0))
    shares = weights if mixture.input else None
    linear = partial(_linear, at, node, tables)
    linear(x, up, products[0], tiles[0], inner, "up", gather=True, shares=shares, ending=ending)
    rows = make("rows", at.profile.activation, tables.rows, products[1].n)
    linear(inner, down, products[1], tiles[1], rows, "down", gather=False)
    y, other, gate = _what_is_added(at, node)
    weights = None if mixture.input else weights
    at.add(node, moe_combine(rows, tables, at.result(y), weights=weights, other=other, gate=gate))


def _product(stack: Mapping[str, Operand], format: str, columns: int) -> Product:
    weights = tuple(one for name, one in stack.items() if name != "bias")
    rows = stack["weight"].shape[1]
    assert isinstance(rows, int)
    return Product(weights, rows, columns, "dense" if format == "none" else format)


def _linear(
    at: Lowering,
    node: ir.Node,
    tables: Sorted,
    x: Operand,
    stack: Mapping[str, Operand],
    product: Product,
    tile: Tile,
    y: Operand,
    name: str,
    *,
    gather: bool,
    shares: Operand | None = None,
    ending: Ending | None = None,
) -> None:
    """One of the two grouped linears, with room for parts of K if its tile has them."""
    blocks = value_of(tables.blocks, {tables.tokens: at.shape.limit(tables.tokens)})
    tile = whole_if_many(tile, product.n, blocks)
    room = {}
    if tile.splits > 1:
        partial_sums = _buffer(at, node, f"{name}.partial", "f32", tile.splits, tables.rows, product.n)
        room = {"workspace": partial_sums, "counters": at.counters(-(-product.n // tile.block_n) * blocks)}
    call = moe_linear(
        *(x, product.weights, tables, y),
        format=product.format,
        tile=tile,
        gather=gather,
        bias=stack.get("bias"),
        shares=shares,
        ending=ending,
        **room,
    )
    at.add(node, call)


def _buffer(at: Lowering, node: ir.Node, name: str, dtype: str, *shape: int | str) -> Operand:
    return at.buffer(f"{node.outputs[0].name}.{name}", dtype, *shape)


def _experts_of_all(node: ir.Node) -> int:
    """Experts of all ranks: those among which the router chooses."""
    router = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert router is not None and router.op_type == "Route", f"{node.name}: experts that no router chose"
    return width(router.inputs[0])


def _what_is_added(at: Lowering, node: ir.Node) -> tuple[ir.Value, Operand | None, Operand | None]:
    """(value, summand, gate of the summand) of the last launch: of the sum that reads a mixture, if it can add it."""
    (y,) = node.outputs
    if not _is_summand(y):
        return y, None, None
    ((add, place),) = y.uses()
    other = add.inputs[1 - place]
    pair = gated_by_sigmoid(other)
    if pair is not None and all(map(at.computed, pair)):
        summand, gate = map(at.operand, pair)
        return add.outputs[0], summand, gate
    if other is not None and at.computed(other):
        return add.outputs[0], at.operand(other), None
    return y, None, None


LOWER: Mapping[str, Callable[[Lowering, ir.Node], None]] = {
    "Route": _route,
    "MoE": _mixture,
    "Sigmoid": lambda at, node: None,  # its readers apply it
}
