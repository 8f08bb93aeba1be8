#!/usr/bin/env bash
# ONNX Runtime: a Cast to float8e4m3fn without saturation gives 448 for 480 to 496, and NaN for smaller and larger numbers.
#
# Guess, written down first: with saturate=0 what rounds above 448 is NaN, so everything above 464 is, as the table of the
#   ONNX operator says and as onnx.reference and ml_dtypes do.
# Seen (onnxruntime 1.32.0, the CPU provider; 1.31.1 too): 464 is 448, 465 to 479 are NaN, 480 to 495 are 448, 496 and more
#   NaN; for float, float16 and double, for Cast and for QuantizeLinear. To float8e5m2 61440 and more are NaN, where
#   onnx.reference and ml_dtypes have infinity.
# Why it matters: saturate=0 is what a check for overflow relies on. A tensor whose largest value lies in that band passes
#   it, though smaller values of the same tensor become NaN; a search for the first failing scale by bisection goes astray.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 ml_dtypes==0.6.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def model(to, source, count):
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=to, saturate=0),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", source, [count])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [count])]
    graph = helper.make_graph(nodes, "cast", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def by_runtime(x, to, source):
    made = model(to, source, len(x)).SerializeToString()
    return onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def quantized(x):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["y"], output_dtype=TensorProto.FLOAT8E4M3FN, saturate=0),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [len(x)]), ("scale", []))]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [len(x)])]
    made = helper.make_model(
        helper.make_graph(nodes, "quantize", inputs, outputs), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "scale": np.array(1, np.float32)})[0]


def by_reference(x, to):
    return ReferenceEvaluator(model(to, TensorProto.FLOAT, len(x))).run(None, {"x": x})[0]


values = [448, 464, 465, 479, 480, 495, 496, 1000]
nan = float("nan")
for source, dtype in ((TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)):
    found = by_runtime(np.array(values, dtype), TensorProto.FLOAT8E4M3FN, source)
    print("onnxruntime", dtype.__name__, dict(zip(values, found.tolist())))
    np.testing.assert_array_equal(found, [448, 448, nan, nan, 448, 448, nan, nan])
x = np.array(values, np.float32)
np.testing.assert_array_equal(quantized(x), [448, 448, nan, nan, 448, 448, nan, nan])
for name, found in (
    ("onnx.reference", by_reference(x, TensorProto.FLOAT8E4M3FN)),
    ("ml_dtypes", x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)),
):
    print(name, dict(zip(values, found.tolist())))
    np.testing.assert_array_equal(found, [448, 448, nan, nan, nan, nan, nan, nan])
large = np.array([57344, 61439, 61440, 65504], np.float32)
found = by_runtime(large, TensorProto.FLOAT8E5M2, TensorProto.FLOAT)
print("onnxruntime, e5m2", found.tolist(), "onnx.reference", by_reference(large, TensorProto.FLOAT8E5M2).tolist())
np.testing.assert_array_equal(found, [57344, 57344, nan, nan])
np.testing.assert_array_equal(by_reference(large, TensorProto.FLOAT8E5M2), [57344, 57344, np.inf, np.inf])
np.testing.assert_array_equal(large.astype(ml_dtypes.float8_e5m2).astype(np.float32), [57344, 57344, np.inf, np.inf])
EOF
echo "still so"
