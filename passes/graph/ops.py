"""The operators of domain `llmc`: each is defined by an ONNX function body, which ONNX Runtime executes.

Dimension letters: B batch, S new tokens, T = B*S, R rows of logits, C cache capacity, H hidden, A heads, K kv heads, D
head size, I intermediate, V vocabulary; N and K are also a linear's output and input size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import onnx
import onnx_ir as ir

from ...quantize import FORMATS
from . import activations, attention, collectives, experts, latent, pointwise
from .pointwise import ACTIVATIONS

DOMAIN = "llmc"
DENSE = "f32"

_SELECT_ROWS = """
SelectRows (x, rows) => (y) {
  last = Shape <start = -1> (x)
  minus = Constant <value_ints = [-1]> ()
  flat = Concat <axis = 0> (minus, last)
  tokens = Reshape (x, flat)
  y = Gather <axis = 0> (tokens, rows)
}"""
"""x f32 [B, S, H], rows i64 [R], indices into the T tokens -> y f32 [R, H]."""

_POSITIONS = """
Positions (input_ids, past_lengths) => (y) {
  size = Shape <start = 1, end = 2> (input_ids)
  none = Constant <value_ints = [0]> ()
  axis = Constant <value_ints = [1]> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  stop = Squeeze (size, none)
  steps = Range (zero, stop, one)
  past = Cast <to = 7> (past_lengths)
  column = Unsqueeze (past, axis)
  y = Add (column, steps)
}"""
"""input_ids i64 [B, S], past_lengths i32 [B] -> y i64 [B, S], the position of each token."""

_ADD_RMS_NORM = """
AddRMSNorm <epsilon> (x, r, weight) => (y, sum) {
  sum = Add (x, r)
  y = RMSNormalization <axis = -1, epsilon: float = @epsilon> (sum, weight)
}"""
"""x and r f32 [..., H], weight f32 [H] -> y = RMSNorm(x + r) * weight, sum = x + r."""

PART = "_part"
"""In overloads of `Embedding`: the table has the rows from `start` on; an id of other rows gives zeros."""


def overload_of(format_name: str, *, bias: bool = False) -> str:
    """The overload (function variant) of `Linear` and `Embedding` for a weight format."""
    return format_name.replace("-", "_") + ("_bias" if bias else "")


FORMAT_OF = {overload_of(name): name for name in FORMATS}


def format_of(node: ir.Node) -> str:
    """The weight format of a `Linear` or `Embedding`: a name of FORMATS, or `DENSE`."""
    overload = node.overload.removesuffix("_bias").removesuffix(PART)
    return FORMAT_OF.get(overload, overload)


def has_bias(node: ir.Node) -> bool:
    return node.overload.endswith("_bias")


_AFTER_HEAD = frozenset(("AllGather", "Scale", "Softcap", "SelectRows"))
"""Operators between the head and the logits."""


def makes_logits(linear: ir.Node) -> bool:
    """Whether this linear is the head: its result, gathered from shards, scaled or capped, is a graph output."""
    value = linear.outputs[0]
    while not value.is_graph_output():
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in _AFTER_HEAD:
            return False
        value = users[0].outputs[0]
    return True


def is_collective(node: ir.Node | onnx.NodeProto) -> bool:
    """Whether this is an operator between ranks, in the graph of one rank, where it has no definition."""
    return node.domain == DOMAIN and node.op_type in collectives.ARITY and not node.overload


def weight_suffixes(format_name: str) -> tuple[str, ...]:
    """The stored components of a weight in this format, in the operators' input order."""
    if format_name == DENSE:
        return ("weight",)
    return tuple(part.suffix for part in FORMATS[format_name].layouts)


def functions(nodes: Iterable[ir.Node | onnx.NodeProto]) -> list[onnx.FunctionProto]:
    """The definition of each `llmc` operator among `nodes`, in order of first use."""
    keys = dict.fromkeys(
        (node.op_type, node.overload) for node in nodes if node.domain == DOMAIN and not is_collective(node)
    )
    return [function(op, overload) for op, overload in keys]


@cache
def function(op: str, overload: str) -> onnx.FunctionProto:
    """The definition of one overload of an operator."""
    text = _BODIES[op](overload)
    head = f'<domain: "{DOMAIN}", opset_import: ["" : 24], overload: "{overload}">'
    return onnx.parser.parse_function(head + text)


def _linear_body(overload: str) -> str:
    """x f32 [..., K], the components of a weight W [N, K], maybe a bias f32 [N] -> y = x Wᵀ + bias, f32 [..., N]."""
    biased = overload.endswith("_bias")
    name = overload.removesuffix("_bias")
    inputs = ["x", *_component_names(name), *(["bias"] if biased else [])]
    tail = "product = MatMul (x, turned)\n y = Add (product, bias)" if biased else "y = MatMul (x, turned)"
    return f"""
Linear ({", ".join(inputs)}) => (y) {{
  {_dense(name)}
  turned = Transpose <perm = [1, 0]> (dense)
  {tail}
}}"""


def _embedding_body(overload: str) -> str:
    """input_ids i64 [B, S], the components of a table [V, H] -> y f32 [B, S, H]; rows are dequantized once gathered."""
    fmt = overload.removesuffix(PART)
    part = overload.endswith(PART)
    names = _component_names(fmt)
    rowwise = _rowwise(fmt)
    gather = "\n  ".join(
        f"{name} = Gather <axis = 0> (table_{name}, flat)" if name in rowwise else f"{name} = Identity (table_{name})"
        for name in names
    )
    return f"""
Embedding {"<start> " if part else ""}(input_ids, {", ".join(f"table_{name}" for name in names)}) => (y) {{
  minus = Constant <value_ints = [-1]> ()
  {_PART_OF_IDS.format(table=f"table_{names[0]}") if part else "flat = Reshape (input_ids, minus)"}
  {gather}
  {_dense(fmt)}
  size = Shape (input_ids)
  width = Constant <value_ints = [-1]> ()
  full = Concat <axis = 0> (size, width)
  {"rows = Reshape (dense, full)" if part else "y = Reshape (dense, full)"}
  {"y = Mul (rows, mask)" if part else ""}
}}"""


_PART_OF_IDS = """first = Constant <value_int: int = @start> ()
  none = Constant <value_ints = [0]> ()
  zero = Constant <value_int = 0> ()
  height = Shape <start = 0, end = 1> ({table})
  count = Squeeze (height, none)
  moved = Sub (input_ids, first)
  above = GreaterOrEqual (moved, zero)
  below = Less (moved, count)
  mine = And (above, below)
  local = Where (mine, moved, zero)
  flat = Reshape (local, minus)
  column = Unsqueeze (mine, minus)
  mask = Cast <to = 1> (column)"""
"""Lines of a part of an Embedding: `flat`, the rows of the table, and `mask`, 0 for ids of other parts."""


def _gated_body(overload: str) -> str:
    """act(gate) * up; the merged form takes gate and up side by side, f32 [..., 2*I] -> f32 [..., I]."""
    merged, _, activation = overload.partition("_")
    op, attributes = ACTIVATIONS[activation]
    options = ", ".join(f'{key} = "{value}"' for key, value in attributes.items())
    apply = f"a = {op} {f'<{options}>' if options else ''} (gate)"
    if merged == "merged":
        return f"""
GatedActivation (x) => (y) {{
  gate, up = Split <axis = -1, num_outputs = 2> (x)
  {apply}
  y = Mul (a, up)
}}"""
    return f"GatedActivation (gate, up) => (y) {{\n {apply}\n y = Mul (a, up)\n}}"


def _component_names(overload: str) -> tuple[str, ...]:
    return weight_suffixes(FORMAT_OF.get(overload, overload))


def _rowwise(overload: str) -> set[str]:
    if overload == DENSE:
        return {"weight"}
    return {part.suffix for part in FORMATS[FORMAT_OF[overload]].layouts if "n" in part.axes}


def _dense(overload: str) -> str:
    return "dense = Identity (weight)" if overload == DENSE else FORMATS[FORMAT_OF[overload]].body


_BODIES: dict[str, Callable[[str], str]] = {
    "Linear": _linear_body,
    "Embedding": _embedding_body,
    "GatedActivation": _gated_body,
    "SelectRows": lambda _: _SELECT_ROWS,
    "Positions": lambda _: _POSITIONS,
    "CachedAttention": attention.cached_attention,
    "RopeAttention": attention.rope_attention,
    "SharedAttention": attention.shared_attention,
    "RopeSharedAttention": attention.rope_shared_attention,
    "LatentAttention": latent.latent_attention,
    "HeadNorm": attention.head_norm,
    "PartNorm": attention.part_norm,
    "Scale": lambda _: pointwise.SCALE,
    "Softcap": lambda _: pointwise.SOFTCAP,
    "Activation": pointwise.activation,
    "Route": experts.route,
    "MoE": experts.moe,
    "AddRMSNorm": lambda _: _ADD_RMS_NORM,
    "QuantizeActivations": activations.quantize_activations,
    **collectives.BODIES,
}
OPERATORS = frozenset(_BODIES) | collectives.ARITY.keys()
COLLECTIVES = frozenset((DOMAIN, op) for op in collectives.ARITY)
"""(domain, type) of the operators between ranks, which no legalization replaces."""
