"""Compute only the rows of logits that are asked for: row selection moves up through row-wise operators."""

from __future__ import annotations

import onnx_ir as ir

from .graph import ops
from .graph.graph import BLOCK, Graph, block_of
from .rewrite.pattern import Depth, Miss
from .rewrite.rule import Outcome, Pass, replace_value

_ROWWISE = {
    (ops.DOMAIN, "Linear"),
    (ops.DOMAIN, "GatedActivation"),
    (ops.DOMAIN, "AddRMSNorm"),
    (ops.DOMAIN, "Scale"),
    (ops.DOMAIN, "Softcap"),
    (ops.DOMAIN, "Activation"),
    (ops.DOMAIN, "Route"),
    (ops.DOMAIN, "MoE"),
    ("", "Sigmoid"),
    ("", "RMSNormalization"),
    ("", "LayerNormalization"),
    ("", "Add"),
    ("", "Mul"),
    *(("", op) for op, _ in ops.ACTIVATIONS.values()),
}


class SelectRowsEarly(Pass):
    """SelectRows(f(x)) = f(SelectRows(x)) when f works row by row: the head and the last MLP compute fewer rows."""

    fires = (
        "(float[2,3,4] x, int64[1] rows, float[4] W, float[8,4] H) => (float[1,8] y) "
        "{ n = RMSNormalization<axis=-1>(x, W) h = llmc.Linear:f32(n, H) y = llmc.SelectRows(h, rows) }",
        "(float[2,3,4] x, float[2,3,4] r, int64[1] rows) => (float[1,4] y) "
        "{ s = Add(x, r) t = Swish(s) u = Add(s, t) y = llmc.SelectRows(u, rows) }",
    )
    refuses = {
        "the value is read elsewhere too": "(float[2,3,4] x, int64[1] rows) => (float[1,4] y, float[2,3,4] z) "
        "{ s = Swish(x) y = llmc.SelectRows(s, rows) z = Relu(s) }",
        "Softmax is not row-wise": "(float[2,3,4] x, int64[1] rows) => (float[1,4] y) "
        "{ s = Softmax<axis=1>(x) y = llmc.SelectRows(s, rows) }",
    }

    def run(self, graph: Graph) -> Outcome:
        outcome = Outcome()
        while True:
            select = next((node for node in graph.nodes if _movable(node, outcome)), None)
            if select is None:
                break
            _move(graph, select)
            outcome.fired += 1
        if outcome.fired:
            graph.remove_dead()
        return outcome


def _movable(node: ir.Node, outcome: Outcome) -> bool:
    if (node.domain, node.op_type) != (ops.DOMAIN, "SelectRows"):
        return False
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        return False
    if (producer.domain, producer.op_type) not in _ROWWISE:
        outcome.note(Miss(f"{producer.op_type} is not row-wise", Depth.OPERATOR), node)
        return False
    readers = [user for user, _ in value.uses()]
    if value.is_graph_output() or any(
        user.op_type != "SelectRows" or user.inputs[1] is not node.inputs[1] for user in readers
    ):
        outcome.note(Miss("the value is read elsewhere too", Depth.READ_OUTSIDE), node)
        return False
    return True


def _move(graph: Graph, select: ir.Node) -> None:
    value, rows = select.inputs
    assert value is not None
    producer = value.producer()
    assert producer is not None
    b = graph.build(block_of([producer]), before=producer)
    inputs = [
        b.llmc("SelectRows", given, rows) if given is not None and graph.expr(given) is None else given
        for given in producer.inputs
    ]
    attributes = {name: attr.value for name, attr in producer.attributes.items()}
    new = b(
        producer.op_type,
        *inputs,
        domain=producer.domain,
        overload=producer.overload,
        outputs=len(producer.outputs),
        **attributes,
    )
    result = new if isinstance(new, ir.Value) else new[value.index() or 0]
    moved = result.producer()
    assert moved is not None
    moved.metadata_props.update({k: v for k, v in producer.metadata_props.items() if k != BLOCK})
    for user in [user for user, _ in value.uses()]:
        replace_value(user.outputs[0], result)
    graph.remove_dead()
