"""Small models of Qwen's kind with experts."""

from __future__ import annotations

import torch
from support.samples.families import Case, Sample

_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
_QWEN2 = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}

SAMPLES = (
    Sample(
        "qwen2_moe",
        {
            "a gated shared expert, windows": Case(
                {
                    **_QWEN2,
                    "num_hidden_layers": 3,
                    "use_sliding_window": True,
                    "max_window_layers": 2,
                    "sliding_window": 8,
                    "norm_topk_prob": True,
                    "mlp_only_layers": [1],
                }
            ),
            "old spelling, weights as they are": Case(
                {**_QWEN2, "num_hidden_layers": 4, "decoder_sparse_step": 2, "num_key_value_heads": 1},
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "no biases, all experts chosen": Case(
                {**_QWEN2, "num_experts": 3, "num_experts_per_tok": 3, "qkv_bias": False}, torch.float16
            ),
        },
        wide={"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 128, "mlp_only_layers": []}
        | {"shared_expert_intermediate_size": 128},
    ),
    Sample(
        "qwen3_moe",
        {
            "experts everywhere, normed weights": Case({**_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": []}),
            "each second layer, old spelling": Case(
                {
                    **_EXPERTS,
                    "num_hidden_layers": 4,
                    "decoder_sparse_step": 2,
                    "mlp_only_layers": [3],
                    "norm_topk_prob": False,
                    "num_key_value_heads": 1,
                    "attention_bias": True,
                },
                torch.bfloat16,
                sharded=True,
                old=True,
            ),
            "all experts chosen, windows": Case(
                {
                    **_EXPERTS,
                    "num_experts": 3,
                    "num_experts_per_tok": 3,
                    "use_sliding_window": True,
                    "sliding_window": 8,
                    "max_window_layers": 1,
                },
                torch.float16,
            ),
        },
        # All experts are chosen: rounding moves choices between near experts, and numbers with them.
        wide={"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 4},
    ),
)
