"""What a linear can compute for operators around it (`kernels/linear/parts/fused.py`): norms, and the order of x."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .....passes.graph import ops
from .....passes.graph.graph import attribute, width
from ..call import Operand
from ..kernels.linear.choose import SMALL_M
from ..kernels.linear.dequantize import PER_WORD
from ..kernels.linear.parts.fused import SQUARES, Fused
from ..lowering import Lowering, fp4_group


def readers(at: Lowering, value: ir.Value) -> Iterator[ir.Node | None]:
    """The linears that read a value as 16-bit numbers; None for every reader of another kind."""
    if value.is_graph_output():
        yield None
    for user, position in value.uses():
        passed = (user.op_type == "QuantizeActivations" and not at.wants_fp8(user.outputs[0])) or (
            user.op_type == "SelectRows" and at.shape.decode
        )
        if passed:
            yield from readers(at, user.outputs[0])
        else:
            yield user if user.op_type == "Linear" and position == 0 else None


def order_of(at: Lowering, value: ir.Value) -> int:
    """The order in which a value's readers want its columns (weights in a word), 0 if they differ or want none.

    Steps of many tokens want none: their tiles of activations pass through registers anyway.
    """
    if at.shape.limit(at.rows_of(value)) > SMALL_M:
        return 0
    wanted = {0 if node is None else PER_WORD.get(ops.format_of(node), 0) for node in readers(at, value)}
    order = wanted.pop() if len(wanted) == 1 else 0
    return order if order and width(value) % (16 * order) == 0 else 0


def divides(at: Lowering, value: ir.Value) -> bool:
    """True if all readers of a norm can divide by its root mean square.

    Before the division numbers can be large: float16 might not hold them.
    """
    found = list(readers(at, value))
    return bool(found) and None not in found and at.profile.activation == "bf16"


def unfinished(at: Lowering, y: Operand, epsilon: float) -> Operand:
    """The sums of squares of a norm whose division is left to the readers of its result y [rows, K]."""
    rows, columns = y.shape
    assert isinstance(columns, int)
    squares = at.buffer(f"{y.name}.squares", "f32", -(-columns // SQUARES), rows)
    at.unfinished[y.name] = squares, epsilon
    return squares


def following_norm(at: Lowering, linear: ir.Node) -> ir.Node | None:
    """The norm of a residual sum that is the only reader of a linear, if the linear can begin it."""
    value = linear.outputs[0]
    users = [user for user, _ in value.uses()]
    while at.shape.decode and len(users) == 1 and users[0].op_type == "SelectRows":
        value = users[0].outputs[0]
        users = [user for user, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != "AddRMSNorm" or value.is_graph_output():
        return None
    fits = at.computed(other_summand(at, users[0], linear.outputs[0]))
    return users[0] if fits and divides(at, users[0].outputs[0]) else None


def other_summand(at: Lowering, norm: ir.Node, value: ir.Value) -> ir.Value:
    """What a norm of a sum adds to `value`."""
    first, second = (_before_selection(at, one) for one in norm.inputs[:2])
    return second if first is value else first


def _before_selection(at: Lowering, value: ir.Value | None) -> ir.Value:
    """The value that a selection of rows reads, in a step that selects all; else the value."""
    assert value is not None
    producer = value.producer()
    if at.shape.decode and producer is not None and producer.op_type == "SelectRows":
        return _before_selection(at, producer.inputs[0])
    return value


def around(
    at: Lowering, x: Operand, y: Operand, result: ir.Value, norm: ir.Node | None, *, format: str, activation: str | None
) -> tuple[Operand | None, Fused]:
    """(residual, neighbours) of a linear of x: the norm that it begins, or the activation that it ends with."""
    ordered = at.orders.get(x.name, 0)
    assert ordered in (0, PER_WORD.get(format, 0)), f"{x.name} is in the order of another format"
    squares, epsilon = at.unfinished.get(x.name, (None, 0.0))
    before = {"ordered": ordered > 0, "x_squares": squares, "epsilon": epsilon}
    if norm is None:
        return None, Fused(**before, order=order_for(at, y, result) if activation else 0)
    normed = at.result(norm.outputs[0])
    order = order_for(at, normed, norm.outputs[0])
    after = {"norm_weight": at.operand(norm.inputs[2]), "normed": normed, "order": order}
    made = unfinished(at, normed, attribute(norm, "epsilon", 1e-5))
    return at.operand(other_summand(at, norm, result)), Fused(**before, **after, squares=made)


def order_for(at: Lowering, buffer: Operand, value: ir.Value) -> int:
    """The order of `order_of` in which a value will be stored in a buffer."""
    order = order_of(at, value)
    if order:
        at.orders[buffer.name] = order
    return order


def result_or_quantized(at: Lowering, value: ir.Value, together: int = 0) -> tuple[Operand, Operand | None]:
    """(buffer, None) for a result, or (codes, scales) if `QuantizeActivations` is its only reader and the kernel can.

    together: columns of a token that the kernel has together, so that it can write groups of them only; 0: all.
    """
    users = [user for user, _ in value.uses()]
    quantizes = len(users) == 1 and users[0].op_type == "QuantizeActivations" and at.wants_fp8(value)
    group = fp4_group(users[0].outputs[0]) if quantizes else 0
    if quantizes and (not together or (group and together % group == 0)):
        codes, scales = at.quantized_result(users[0].outputs[0])
        at.alias(users[0].outputs[0], codes)
        return codes, scales
    return at.result(value), None
