#!/usr/bin/env bash
# onnxruntime: QMoE on CPU obeys normalize_routing_weights=0 only if the weights come as router_weights.
#
# Guess, written down first: with normalize_routing_weights=0 the weights of the chosen experts are the softmax over all
#   experts, as in the unquantized MoE operator; router_weights changes where they are read, not whether they are normed.
# Seen (onnxruntime 1.31.1, CPU): without router_weights the attribute changes nothing: the weights of the chosen experts
#   always sum to 1. With router_weights the attribute is obeyed, and raw weights are used as they are.
# Why it matters: Qwen 2 MoE and OLMoE do not norm their weights. Exported with the attribute alone they give other
#   numbers (each layer's experts up to several times too strong), and the graph looks right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import numpy as np
import onnxruntime as ort
from onnx import helper, numpy_helper

E, H, I, BLOCK, CHOSEN = 8, 64, 32, 32, 2
rng = np.random.default_rng(0)
arrays = {
    "up": rng.integers(0, 256, (E, 2 * I, H // 2), dtype=np.uint8),
    "up_scale": rng.random((E, 2 * I, H // BLOCK), dtype=np.float32) * 0.1,
    "down": rng.integers(0, 256, (E, H, I // 2), dtype=np.uint8),
    "down_scale": rng.random((E, H, I // BLOCK), dtype=np.float32) * 0.1,
}


def run(logits: np.ndarray, weights: np.ndarray | None, normed: int) -> np.ndarray:
    inputs = ["x", "p", "up", "up_scale", "", "down", "down_scale"]
    feeds = {"x": X, "p": logits}
    if weights is not None:
        inputs += [""] * 7 + ["w"]
        feeds["w"] = weights
    node = helper.make_node(
        "QMoE", inputs, ["y"], domain="com.microsoft", k=CHOSEN, block_size=BLOCK, activation_type="swiglu",
        swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, normalize_routing_weights=normed,
    )
    values = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", 1, X.shape)], stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


X = rng.standard_normal((4, H)).astype(np.float32)
logits = rng.standard_normal((4, E)).astype(np.float32)
shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
best = np.sort(shares, axis=1)[:, -CHOSEN:].sum(1)
found = {
    (kind, normed): run(logits, weights, normed)
    for kind, weights in (("from logits", None), ("router_weights", shares))
    for normed in (0, 1)
}
ratios = {
    kind: np.abs(found[kind, 0]).sum(1) / np.abs(found[kind, 1]).sum(1) for kind in ("from logits", "router_weights")
}
print("sum of the chosen weights of each token:", best.round(3))
for kind, ratio in ratios.items():
    print(f"{kind}: not normed / normed = {ratio.round(3)}")
assert np.allclose(ratios["from logits"], 1)
assert np.allclose(ratios["router_weights"], best, rtol=1e-3)
EOF
echo "still so"
