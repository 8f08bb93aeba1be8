#!/usr/bin/env bash
# onnxruntime: MatMulNBits in an If within an If is hundreds of times slower if its weight is in the main graph.
#
# Guess, written down first: a product in a branch takes the same time wherever its constant weight is stored, because
#   constants of the main graph are known when the session is made; if not, then any branch would be slow.
# Seen (onnxruntime 1.31.1, CPU, x86-64): in one If both are as fast. In an If within an If (or within a Loop) a weight
#   of the main graph is not packed when the session is made: the kernel dequantizes all of it to float32 in each run (1 x
#   2048 times 2048 x 4096 int4: 0.5 ms packed, some 200 ms not). Nothing warns.
# Why it matters: experts that run only when chosen, as a tree of branches or branches in a loop, look like the natural
#   form of a mixture of experts in ONNX; and add_external_initializers, which binds weights to a session, reaches the main
#   graph only, so whoever binds weights at load time gets exactly this form.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

K, N, BLOCK = 2048, 4096, 32
rng = np.random.default_rng(0)
WEIGHTS = [
    numpy_helper.from_array(rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2), dtype=np.uint8), "w"),
    numpy_helper.from_array(rng.random((N, K // BLOCK), dtype=np.float32), "s"),
]
names = iter(f"y{number}" for number in range(1000))


def graph(depth: int, inner: bool) -> onnx.GraphProto:
    """A product within so many branches; `inner`: its weights are in the graph that has it."""
    name = next(names)
    if depth:
        branches = {key: graph(depth - 1, inner) for key in ("then_branch", "else_branch")}
        node = helper.make_node("If", ["c"], [name], **branches)
    else:
        sizes = {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        node = helper.make_node("MatMulNBits", ["x", "w", "s"], [name], domain="com.microsoft", **sizes)
    own = WEIGHTS if inner and not depth else []
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, [1, N])], own)


def session(depth: int, inner: bool) -> ort.InferenceSession:
    main = graph(depth, inner)
    main.input.extend([helper.make_tensor_value_info("c", 9, []), helper.make_tensor_value_info("x", 1, [1, K])])
    if not inner:
        main.initializer.extend(WEIGHTS)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    model = helper.make_model(main, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


feeds = {"c": np.array(True), "x": rng.standard_normal((1, K)).astype(np.float32)}
ratios = {}
for depth in (1, 2):
    sessions = {inner: session(depth, inner) for inner in (True, False)}
    times: dict[bool, list[float]] = {inner: [] for inner in sessions}
    for turn in range(14):
        for inner, one in sessions.items():
            begin = time.perf_counter()
            one.run(None, feeds)
            times[inner] += [time.perf_counter() - begin] if turn > 3 else []
    own, main = (statistics.median(times[inner]) for inner in (True, False))
    ratios[depth] = main / own
    print(f"{depth} deep: {1e3 * own:.2f} ms with weights of the branch, {1e3 * main:.2f} ms with weights of the main graph")
assert ratios[1] < 5 and ratios[2] > 8
EOF
echo "still so"
