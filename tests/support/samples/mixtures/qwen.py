"""Small models of Qwen's kind with experts."""

from __future__ import annotations

import torch
from support.samples.families import Case, Sample

_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}

SAMPLES = (
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
            "all experts chosen": Case({**_EXPERTS, "num_experts": 3, "num_experts_per_tok": 3}, torch.float16),
        },
        # All experts are chosen: rounding moves choices between near experts, and numbers with them.
        wide={"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 4},
    ),
)
