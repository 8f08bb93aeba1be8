#!/usr/bin/env bash
# transformers: from ten layers on, the layers that a saved Gemma 4 config lists by number have keys such as "05".
#
# Guess, written down first: per_layer_config is saved as {"5": {"head_dim": 512}, ...}, the number of the layer.
# Seen (transformers 5.23.0): with 6 layers the keys are "1", "5"; with 12 layers "05" and "11": as many digits as the
#   largest has. global_head_dim, from which they were made, is not saved.
# Why it matters: a reader that looks for str(layer) finds the larger heads of layers 10 and up only, and the sizes of the
#   others are then the small ones; only the shapes of tensors tell.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import json
from transformers import AutoConfig

for layers, expected in ((6, ["5"]), (12, ["05", "11"])):
    config = AutoConfig.for_model("gemma4_text", num_hidden_layers=layers, global_head_dim=64, head_dim=32)
    saved = json.loads(config.to_json_string())
    print(layers, saved["per_layer_config"], "global_head_dim" in saved)
    assert list(saved["per_layer_config"]) == expected and "global_head_dim" not in saved
EOF
echo "still so"
