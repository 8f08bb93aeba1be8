#!/usr/bin/env bash
# transformers: a tensor that two shards hold is read from the last shard, whatever model.safetensors.index.json says.
#
# Guess, written down first: weight_map decides, as it maps each tensor to its file; a second copy is not read or refused.
# Seen (transformers 5.23.0, safetensors 0.8.0, CPU): the index lists model.norm.weight for shard 1, which holds ones;
#   shard 2, listed for another tensor only, holds twos of the same name. The model gets the twos, without a warning.
#   The index is read as a list of files.
# Why it matters: a merged or resumed upload with a stale copy in a later shard loads other weights than readers that
#   follow the index, and nobody is told.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
WORK="$work" "$work/venv/bin/python" - <<'EOF'
import json
import os
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = pathlib.Path(os.environ["WORK"]) / "checkpoint"
config = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=16,
    tie_word_embeddings=True,
)
model = LlamaForCausalLM(config)
model.save_pretrained(folder)
(folder / "model.safetensors").unlink()
tensors = {name: one.clone() for name, one in model.state_dict().items() if name != "lm_head.weight"}
norm, other = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
first, last = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
moved = {other: tensors.pop(other)}
save_file({**tensors, norm: torch.full((16,), 1.0)}, folder / first, {"format": "pt"})
save_file({**moved, norm: torch.full((16,), 2.0)}, folder / last, {"format": "pt"})
table = {**dict.fromkeys(tensors, first), other: last}
assert table[norm] == first
(folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
found = AutoModelForCausalLM.from_pretrained(folder).model.norm.weight
print("weight_map says", table[norm], "with 1.0; read:", found[0].item())
assert (found == 2.0).all()
EOF
echo "still so"
