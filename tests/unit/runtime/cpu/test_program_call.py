"""A call of several segments: what passes between two of them lives as long as the call."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from llmc.runtime.cpu.program import RUN, Program, Step
from llmc.runtime.cpu.program_call import LOGITS, Call, Loaded
from llmc.runtime.cpu.slots import SlotCaches

WIDTH, TOKENS = 64, 16


def session(op: str, inputs: dict[str, list], output: str, shape: list, **attributes: Any) -> ort.InferenceSession:
    helper = onnx.helper
    node = helper.make_node(op, [*inputs], [output], **attributes)
    kinds = {name: 7 if name == "input_ids" else 1 for name in inputs}
    values = [helper.make_tensor_value_info(name, kinds[name], of) for name, of in inputs.items()]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info(output, 1, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_value_between_two_segments_outlives_the_making_of_the_call() -> None:
    """Sessions are bound to its address only: ranks with a norm of all keys together wrote into freed memory."""
    wide = ["B", "S"]
    steps = (
        Step(RUN, "one.onnx", outputs=("between",)),
        Step(RUN, "two.onnx", inputs=("between",), outputs=(LOGITS,)),
    )
    program = Program({"between": ("B", "S"), LOGITS: ("B", "S")}, steps)
    sessions = {
        "one.onnx": session("Cast", {"input_ids": wide}, "between", wide, to=1),
        "two.onnx": session("Neg", {"between": wide}, LOGITS, wide),
    }
    slots = SlotCaches({}, TOKENS)
    slots.commit(0, TOKENS)
    call = Call(Loaded(program, sessions, {}, (), None), slots, slice(0, 1), TOKENS, TOKENS)
    gc.collect()
    others = [np.full((1, TOKENS), -1.0, np.float32) for _ in range(200)]  # what would take freed memory
    call.ids[0] = np.arange(TOKENS)
    call.run()
    assert call.logits.tolist() == [[-float(one) for one in range(TOKENS)]]
    assert all((one == -1.0).all() for one in others)
