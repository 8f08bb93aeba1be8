#!/usr/bin/env bash
# transformers: with rope type dynamic, the logits of a text depend on which texts the model object computed before it.
#
# Guess, written down first: a forward call without a cache is a function of its tokens; a prompt gives the same logits
#   whenever it is asked.
# Seen (transformers 5.23.0, torch 2.13.0, CPU, a random Llama of 2 layers, 32 trained positions): 48 tokens give other
#   logits, by half of the largest, after a call of 96 tokens. The rotary module keeps the frequencies of its longest
#   call; only a call shorter than 32 tokens resets them, and one of exactly 32 does not.
# Why it matters: perplexity windows, batches and tests with such a checkpoint depend on their order. A runtime compared
#   with transformers must use a fresh model for each length beyond the trained one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=200,
    max_position_embeddings=32, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
)
model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for name, weight in model.named_parameters():
        weight.normal_(1.0 if "norm" in name else 0.0, 0.15)
text, short, longer = (torch.randint(0, 200, (1, count)) for count in (48, 32, 96))


def logits(tokens):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def differs(tokens, before):
    return float((logits(tokens) - before).abs().max() / before.abs().max())


first_short, first = logits(short), logits(text)
assert differs(text, first) == 0
logits(longer)
after = differs(text, first)
print(f"48 tokens after a call of 96: logits differ by {after:.3f} of the largest")
assert after > 0.1
after = differs(short, first_short)
print(f"32 tokens, all of them trained positions, after it: {after:.3f}")
assert after > 0.1
logits(short[:, :31])
assert differs(short, first_short) < 1e-6, "a call of fewer than 32 tokens resets the frequencies"
EOF
echo "still so"
