#!/usr/bin/env bash
# transformers: rope_scaling's first spelling, "type", is honoured in Llama and dropped in Gemma 3.
#
# Guess, written down first: {"type": "linear", "factor": 8} and {"rope_type": "linear", "factor": 8} are one setting in
#   every class, as the library still converts the first to the second.
# Seen (transformers 5.23.0): in Llama both give rope_type linear; in Gemma 3 "type" leaves the rope type default, with
#   the factor beside it unused (a warning calls the factor unrecognized): settings are merged into a dict that says
#   rope_type already.
# Why it matters: positions are off by the factor in every layer that sees all tokens, and the warning names the wrong key.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
from transformers import AutoConfig

found = {}
for kind, pick in (("llama", lambda rope: rope), ("gemma3_text", lambda rope: rope["full_attention"])):
    for key in ("type", "rope_type"):
        config = AutoConfig.for_model(kind, rope_scaling={key: "linear", "factor": 8.0}, rope_theta=1e6)
        rope = pick(config.rope_parameters)
        found[kind, key] = rope["rope_type"]
        print(kind, key, {name: rope[name] for name in sorted(rope)})
assert found["llama", "type"] == found["llama", "rope_type"] == found["gemma3_text", "rope_type"] == "linear"
assert found["gemma3_text", "type"] == "default"
EOF
echo "still so"
