#!/usr/bin/env bash
# transformers: Gemma 3 reads attn_logit_softcapping and caps nothing; Gemma 2 with the same key does.
#
# Guess, written down first: both classes have the key and a softcap in their eager attention, so a cap of 1 changes the
#   logits of both.
# Seen (transformers 5.23.0, torch 2.13.0, CPU, eager attention, random models of 2 layers): Gemma 2's logits change, those
#   of Gemma 3 are the same bits with a cap of 1 and without: the layer keeps the number and never hands it on.
# Why it matters: a config of Gemma 3 with a cap (a fine-tune that came from Gemma 2's file) means one model to
#   transformers and another to a runtime that does what the key says.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, vocab_size=200, sliding_window=8, bos_token_id=1)
changed = {}
for kind in ("gemma2", "gemma3_text"):
    logits = []
    for cap in (None, 1.0):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **sizes, attn_logit_softcapping=cap)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0.0, 0.2)
            logits.append(model(torch.arange(24)[None]).logits)
    changed[kind] = float((logits[0] - logits[1]).abs().max())
    print(f"{kind}: a cap of 1 moves logits by {changed[kind]:.2g}")
assert changed["gemma2"] > 1e-3 and changed["gemma3_text"] == 0.0
EOF
echo "still so"
