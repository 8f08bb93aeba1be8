"""Proves that graphs which could do more than compute are refused, against models made by the onnx library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from llmc.runtime.cpu.onnx_scan import CPU_OPERATORS, scan
from llmc.runtime.errors import EngineError


def outside(name: str, location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "8", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    nodes: Sequence[onnx.NodeProto] = (), initializers: Sequence[TensorProto] = (), **more: Any
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["S", 2])
    main = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.arange(2.0, dtype="f4"))),
        helper.make_node("Add", ["x", "c"], ["y"], name="add"),
        helper.make_node("QuickGelu", ["y"], ["z"], domain="com.microsoft", alpha=1.5),
        helper.make_node("Concat", ["z", "z"], ["out"], domain="ai.onnx", axis=-1),
    ]
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([*main, *nodes], "g", [value], [result], list(initializers), value_info=[value])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], **more)
    helper.set_model_props(made, {"a": "b"})
    return made


def refusal(made: onnx.ModelProto | bytes, external: str | None = "weights", **more: Any) -> str:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(EngineError) as caught:
        scan(data, what="graph.onnx", external=external, **more)
    assert str(caught.value).startswith("expected ") and "graph.onnx" in caught.value.asked
    return str(caught.value)


def test_flat_graphs_pass() -> None:
    arrays = [np.arange(5), np.ones((2, 3), "f4"), np.ones(2, "f8"), np.ones(3, "u8"), np.array(["a", "b"], object)]
    inside = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(arrays)]
    typed = helper.make_tensor("t", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    many = helper.make_node("Split", ["x"], ["p", "q"], num_outputs=2, axis=0, s="text", f=[1.0, 2.0], t=[typed, typed])
    made = model([many], [*inside, typed, outside("e", "weights")])
    scan(made.SerializeToString(), what="graph.onnx", external="weights")
    scan(b"", what="graph.onnx", external=None)


def test_every_listed_operator_passes() -> None:
    for domain, name in CPU_OPERATORS:
        made = model([helper.make_node(name, ["x"], ["y2"], domain=domain)])
        scan(made.SerializeToString(), what="graph.onnx", external=None)


def test_operators_off_the_list_are_refused() -> None:
    loop = helper.make_node("Loop", ["x"], ["q"], name="spin")
    assert "operator 'Loop' at node 'spin'" in refusal(model([loop]))
    assert "'evil.Add'" in refusal(model([helper.make_node("Add", ["x"], ["q"], domain="evil")]))
    assert "did you mean 'MatMul'" in refusal(model([helper.make_node("MatMull", ["x"], ["q"])]))
    assert "operator ''" in refusal(model([onnx.NodeProto(name="none")]))
    assert "'QuickGelu'" in refusal(model([helper.make_node("QuickGelu", ["x"], ["q"])]))
    assert "'Constant'" in refusal(model(), operators={("", "Add")})


def test_an_operator_named_twice_is_refused() -> None:
    node = (
        helper.make_node("Loop", ["x"], ["q"]).SerializeToString() + onnx.NodeProto(op_type="Add").SerializeToString()
    )
    graph = b"\x0a" + bytes([len(node)]) + node
    assert "nodes with one name, operator and domain" in refusal(b"\x3a" + bytes([len(graph)]) + graph)


def test_what_is_not_a_flat_graph_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("Add", ["x"], ["q"], body=inner)
    assert "a subgraph in the attribute" in refusal(model([node]))
    assert "a list of subgraphs" in refusal(model([helper.make_node("Add", ["x"], ["q"], bodies=[inner, inner])]))
    function = helper.make_function("own", "f", ["x"], ["x"], [], [helper.make_opsetid("", 24)])
    assert "a model local function" in refusal(model(functions=[function]))
    overload = helper.make_node("Add", ["x"], ["q"])
    overload.overload = "other"
    assert "an overload" in refusal(model([overload]))
    trained = model()
    trained.training_info.add()
    assert "training information" in refusal(trained)
    sparse = model()
    sparse.graph.sparse_initializer.add()
    assert "a sparse initializer" in refusal(sparse)
    attribute = helper.make_node("Constant", [], ["q"])
    attribute.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.dims.append(1)
    assert "a sparse tensor" in refusal(model([attribute]))
    reference = helper.make_node("Add", ["x"], ["q"])
    reference.attribute.add(name="axis", ref_attr_name="a", type=onnx.AttributeProto.INT)
    assert "a reference to a function" in refusal(model([reference]))


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights", "", "Weights", "*/_ORT_MEM_ADDR_/*", "weights\0"])
def test_data_elsewhere_is_refused(location: str) -> None:
    tensor = outside("e", location)
    assert "except in 'weights'" in refusal(model(initializers=[tensor]))
    assert "tensor 'e'" in refusal(model([helper.make_node("Constant", [], ["q"], value=tensor)]))
    assert "tensor 'e'" in refusal(model([helper.make_node("Constant", [], ["q"], values=[tensor, tensor])]))
    tensor.data_location = TensorProto.DEFAULT
    assert "tensor 'e'" in refusal(model(initializers=[tensor]))


def test_odd_external_data_is_refused() -> None:
    assert "no tensors outside" in refusal(model(initializers=[outside("e", "weights")]), external=None)
    twice = outside("e", "weights")
    twice.external_data.add(key="location", value="other")
    assert "tensor 'e' in ['weights', 'other']" in refusal(model(initializers=[twice]))
    nowhere = outside("e", "weights")
    del nowhere.external_data[:]
    assert "tensor 'e' in []" in refusal(model(initializers=[nowhere]))
    assert "known keys" in refusal(model(initializers=[outside("e", "weights", basepath="/")]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x3a", "a damaged or cut number"),
        (b"\x3a\x05a", "ends 4 bytes behind it"),
        (b"\x08" + b"\xff" * 10, "a damaged or cut number"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "a damaged or cut number"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "behind it"),
        (b"\x3b\x3c", "of wire type 3"),
        (b"\x0b\x0c", "wire type 3 in the model"),
        (b"\x38\x01", "field 7 of the model of wire type 0"),
        (b"\x09\x00", "behind it"),
        (b"\x00", "field 0 in the model"),
        (b"\xfa\x7f\x00", "field 2047 in the model"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "names in UTF-8"),
    ],
)
def test_damaged_protobuf_is_refused(data: bytes, message: str) -> None:
    assert message in refusal(data)


def operators_of(made: onnx.ModelProto) -> set[tuple[str, str]]:
    return {(node.domain.replace("ai.onnx", ""), node.op_type) for node in made.graph.node}


BASE = model(initializers=[outside("e", "weights")]).SerializeToString()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_models_are_refused_or_still_flat(data: st.DataObject) -> None:
    raw = bytearray(BASE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        scan(bytes(raw), what="graph.onnx", external="weights")
    except EngineError:
        return
    made = onnx.ModelProto()
    try:
        made.ParseFromString(bytes(raw))
    except Exception:
        return  # the runtime will refuse it
    assert operators_of(made) <= CPU_OPERATORS
    assert not made.functions
    assert all(entry.value == "weights" for tensor in made.graph.initializer for entry in tensor.external_data[:1])
    assert not any(attribute.g.node or attribute.graphs for node in made.graph.node for attribute in node.attribute)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_noise_gives_only_the_error(raw: bytes) -> None:
    try:
        scan(raw, what="graph.onnx", external=None)
    except EngineError:
        return
