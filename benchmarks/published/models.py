"""The models of the published figures, and how they are run: configs and recipes by name, lowered once."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

from llmc.compiler.families.config import parse_config
from llmc.compiler.planner.all_formats import AllFormats, Logical, Refused, Subject
from llmc.compiler.planner.pieces import Pieces
from llmc.recipes.recipe import QuantizeRule, Recipe

MAX_BATCH, PROMPT_TOKENS = 2048, 8192
"""Most requests at once, and tokens of prompts in a step: TensorRT-LLM's defaults (max_batch_size, max_num_tokens)."""
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_SHAPES = {  # hidden size, layers, heads, inner size
    "Llama 8B": (4096, 32, 32, 14336),
    "Llama 70B": (8192, 80, 64, 28672),
    "Llama 405B": (16384, 126, 128, 53248),
    "Qwen3 32B": (5120, 64, 64, 25600),
    "Qwen3 30B-A3B": (2048, 48, 32, 6144),
    "Qwen3 235B-A22B": (4096, 94, 64, 12288),
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
}
_EXPERTS = {  # inner size of one of 128 experts, of which 8 compute a token
    "Qwen3 30B-A3B": 768,
    "Qwen3 235B-A22B": 1536,
}
_QWEN3_MOE = {
    **_QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "intermediate_size": 2880,
    "sliding_window": 128,
    "attention_bias": True,
    "vocab_size": 201088,
    "rms_norm_eps": 1e-05,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "hidden_act": "silu",
    "swiglu_limit": 7.0,
}
_GPT_OSS_SIZES = {"GPT-OSS 20B": (24, 32), "GPT-OSS 120B": (36, 128)}
"""Layers and experts."""
_HEAD = (QuantizeRule("lm_head", "none"),)
"""Published checkpoints in FP8 and FP4 keep the head in bf16."""
_FP8 = Recipe(default_format="fp8", rules=_HEAD, activations="fp8", targets=("sm_90",), max_batch=MAX_BATCH)
W4A4 = "nvfp4, activations nvfp4"
RECIPES = {
    "fp8": replace(_FP8, kv="fp8"),
    "fp8, cache bf16": _FP8,
    "nvfp4": replace(_FP8, default_format="nvfp4", kv="fp8"),
    W4A4: replace(_FP8, default_format="nvfp4", kv="fp8", activations="nvfp4", targets=("sm_100",)),
    "bf16": Recipe(targets=("sm_90",), max_batch=MAX_BATCH),
    "mxfp4 experts": Recipe(rules=(QuantizeRule("*.mlp.experts.*", "mxfp4"),), targets=("sm_90",), max_batch=MAX_BATCH),
}
"""By name; sm_90's plans stand for those of all chips with FP8, and sm_100's for those of all with FP4."""


def subject(model: str) -> Subject:
    if model in _GPT_OSS_SIZES:
        layers, experts = _GPT_OSS_SIZES[model]
        own = {**_GPT_OSS, "num_hidden_layers": layers, "num_local_experts": experts}
        return Subject(parse_config(json.dumps({**_LLAMA, **own})), "bfloat16", "BF16")
    hidden, layers, heads, inner = _SHAPES[model]
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    family: dict[str, object] = {**_QWEN3} if model.startswith("Qwen3") else {}
    if model in _EXPERTS:
        family = {**_QWEN3_MOE, "moe_intermediate_size": _EXPERTS[model]}
    text = json.dumps({**_LLAMA, **family, **sizes, "intermediate_size": inner})
    return Subject(parse_config(text), "bfloat16", "BF16")


@cache
def _formats(model: str, tp: int, ep: int) -> AllFormats:
    return AllFormats(Logical(subject(model)), tp, ep)


@cache
def pieces(model: str, recipe: str, tp: int, ep: int = 1) -> Pieces:
    found = _formats(model, tp, ep).pieces(RECIPES[recipe])
    if isinstance(found, Refused):
        raise ValueError(f"{model}, {recipe}, {tp * ep} shards: {found.reason}")
    return found
