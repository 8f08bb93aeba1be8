#!/usr/bin/env bash
# Float to E8M0, the scales of MXFP4 and MXFP8: four libraries give four answers for zero, a negative number and infinity.
#
# Guess, written down first: E8M0 has no zero, sign or infinity, so 0 becomes the smallest scale 2^-127 everywhere, and
#   negative numbers and infinity become NaN everywhere.
# Seen:                    0        -1        +infinity
#   torch 2.13.0           2^-127   1 (!)     NaN          the sign is dropped
#   ml_dtypes 0.6.0        NaN      NaN       NaN
#   onnx 1.23.2            2^-127   1 (!)     NaN          the reference evaluator, with saturate=1, the default
#   onnxruntime 1.32.0     2^-127   2^-127    2^127        the same node
#   All four round 1.5, 2.9, 3 and 6 alike: to 2, 2, 4 and 8.
# Why it matters: a block of zeros has the scale 0. Written through ml_dtypes it becomes NaN, and the whole block with it;
#   through torch it is harmless. A negative scale, which is always a mistake, passes through three of the four without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 onnxruntime==1.32.0 onnx==1.23.2 ml_dtypes==0.6.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import ml_dtypes
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

nodes = [
    helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E8M0, round_mode="nearest"),
    helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
]
shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xz"]
graph = helper.make_graph(nodes, "cast", shown[:1], shown[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.array([0, -1, np.inf, 1.5, 2.9, 3, 6], np.float32)
found = {
    "torch": torch.from_numpy(x).to(torch.float8_e8m0fnu).float().numpy(),
    "ml_dtypes": x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32),
    "onnx.reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
    "onnxruntime": session.run(None, {"x": x})[0],
}
least, most, nan = 2.0**-127, 2.0**127, np.nan
expected = {
    "torch": [least, 1, nan],
    "ml_dtypes": [nan, nan, nan],
    "onnx.reference": [least, 1, nan],
    "onnxruntime": [least, least, most],
}
for name, values in found.items():
    print(f"{name:15s}", values.tolist())
for name, values in found.items():
    np.testing.assert_array_equal(values, np.float32([*expected[name], 2, 2, 4, 8]), err_msg=name)
EOF
echo "still so"
