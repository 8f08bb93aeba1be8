"""Llama 2, 3, 3.1, 3.2, 3.3 and the many checkpoints that keep their shape."""

from __future__ import annotations

from .family import Family, Names

LLAMA = Family(
    architecture="LlamaForCausalLM",
    name="llama",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{layer}",
        attention_norm="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        final_norm="model.norm",
        head="lm_head",
    ),
)
