"""The onnx package reads what is written without it, and ours reads back the same nodes."""

from __future__ import annotations

import onnx
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.costs.graph import read_graph
from llmc.runtime.costs.onnx_bytes import F32, U8, Op, Typed, model

NAMES = st.text(min_size=1, max_size=12).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
OPS = st.builds(
    Op,
    st.sampled_from(("", "com.microsoft")),
    NAMES,
    st.lists(st.text("abc", max_size=3), max_size=4),
    st.lists(NAMES, max_size=3),
    st.dictionaries(NAMES, NUMBERS | st.lists(NUMBERS, min_size=1, max_size=4), max_size=3),
)
TYPED = st.builds(Typed, NAMES, st.just(F32), st.lists(st.integers(0, 1 << 40) | NAMES, max_size=4))


@given(st.lists(OPS, max_size=4), st.lists(TYPED, max_size=4, unique_by=lambda one: one.name))
def test_any_nodes_and_shapes_are_read_as_they_were_written(ops: list[Op], inputs: list[Typed]):
    data = model(ops, inputs, [])
    read = onnx.load_from_string(data)
    found = read_graph(data, what="a test")
    assert [
        (
            node.domain,
            node.op_type,
            list(node.input),
            list(node.output),
            {a.name: list(a.ints) or a.i for a in node.attribute},
        )
        for node in read.graph.node
    ] == [(op.domain, op.name, [*op.inputs], [*op.outputs], dict(op.attributes)) for op in ops]
    assert [(node.domain, node.op, node.inputs, node.outputs, node.numbers) for node in found.nodes] == [
        (
            op.domain,
            op.name,
            [*op.inputs],
            [*op.outputs],
            {name: tuple(one) if isinstance(one, list) else (one,) for name, one in op.attributes.items()},
        )
        for op in ops
    ]
    assert found.shapes == {one.name: tuple(one.shape) for one in inputs}


def test_a_model_is_one_that_onnx_accepts():
    ops = [Op("", "Mul", ["x", "w"], ["y"])]
    data = model(ops, [Typed("x", F32, [1, "S", 8])], [Typed("y", F32, [1, "S", 8])], [Typed("w", F32, [8])], "weights")
    read = onnx.load_from_string(data)
    [weight] = read.graph.initializer
    assert (weight.name, list(weight.dims), weight.external_data[0].value) == ("w", [8], "weights")
    del read.graph.initializer[:]  # its file is the session's, and the checker would look for one
    read.graph.input.append(onnx.helper.make_tensor_value_info("w", F32, [8]))
    onnx.checker.check_model(read)
    assert read_graph(data, what="a test").shapes == {"x": (1, "S", 8), "w": (8,)}


def test_numbers_of_attributes_keep_their_type():
    [node] = onnx.load_from_string(model([Op("", "A", [], [], {"f": 0.5, "i": -1, "l": [3]})], [], [])).graph.node
    assert {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute} == {"f": 0.5, "i": -1, "l": [3]}


def test_bytes_are_a_type_of_their_own():
    [value] = onnx.load_from_string(model([], [Typed("w", U8, [2, 3])], [])).graph.input
    assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
