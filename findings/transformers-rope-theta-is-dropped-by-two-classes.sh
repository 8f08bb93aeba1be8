#!/usr/bin/env bash
# transformers: rope_theta at the top of config.json counts in most classes, and is dropped by Apertus and Ministral 3.
#
# Guess, written down first: a config with rope_theta 5e5 and no rope_parameters turns with that theta, as in Llama, since
#   nearly every file on the hub is spelled so.
# Seen (transformers 5.23.0): Llama and OLMo 2 turn with 5e5; Apertus keeps its own 12e6, and Ministral 3 its own 1e6
#   with yarn: a class that has default rope_parameters never looks at the old key.
# Why it matters: the same file means other positions to a runtime that reads the key, and no reader says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
from transformers import AutoConfig

found = {}
for kind in ("llama", "olmo2", "apertus", "ministral3"):
    rope = AutoConfig.for_model(kind, rope_theta=5e5).rope_parameters
    found[kind] = rope["rope_theta"]
    print(kind, rope)
assert found["llama"] == found["olmo2"] == 5e5
assert found["apertus"] == 12e6 and found["ministral3"] == 1e6
EOF
echo "still so"
