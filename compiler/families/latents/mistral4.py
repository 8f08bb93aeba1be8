"""Mistral 4: latent attention whose queries grow with their position, and experts chosen by a softmax with groups."""

from __future__ import annotations

from dataclasses import replace

from ....runtime.dtypes import SOFTMAX
from ....runtime.errors import Unsupported
from ...config.fields import Fields
from ...config.rope import RopeConfig, RopeDefaults
from ..experts import count, grouped, router, scaled, with_shared
from ..latent import EXPERTS, KEYS, MAPPED, latent
from ..reading import ConfigReader, Family
from ..spec import LayerSpec, Temperature

_BETA, _ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
_KEYS = frozenset((_BETA, _ORIGINAL, "max_position_embeddings"))
_ABSENT = {"type": "yarn", "factor": 128.0, _ORIGINAL: 8192, "mscale_all_dim": 1.0, "mscale": 1.0, _BETA: 0.1}
"""The settings of a config that has none."""


def _rope(config: ConfigReader) -> tuple[RopeConfig, Temperature]:
    """The rope of the last part of each head, and what multiplies queries."""
    fields = config.fields
    given = fields.table("rope_parameters") or fields.table("rope_scaling")
    old = {"rope_scaling": _ABSENT, "rope_theta": fields.values.get("rope_theta")}
    rotated, plain = (fields.need_integer(key, 1, 2**16) for key in ("qk_rope_head_dim", "qk_nope_head_dim"))
    defaults = RopeDefaults(share=rotated / (plain + rotated), keys=_KEYS, old=None if given else old)
    rope = config.rope(defaults, head_dim=plain + rotated)
    if rope.rotated(plain + rotated) != rotated:
        expected = f"qk_rope_head_dim of all elements of a head ({rotated} of {plain + rotated})"
        raise fields.refuse("partial_rotary_factor", expected)
    if rope.type != "yarn":  # with others transformers turns whole heads, which have too many elements
        raise Unsupported(f'expected the rope type "yarn" in {fields.what}', found=rope.type)
    own = Fields(given or _ABSENT, f"the rope settings of {fields.what}")
    original = rope.parameters[_ORIGINAL]
    assert isinstance(original, int)
    return rope, Temperature(own.need_number(_BETA, 0.0, 1e6), original)


def _layer(config: ConfigReader, index: int) -> LayerSpec:
    rope, temperature = _rope(config)
    mixer = latent(config, interleaved=config.flag("rope_interleave"), rope=rope)
    mixer = replace(mixer, temperature=temperature)
    if index < config.fields.need_integer("first_k_dense_replace", 0, 2048):
        return config.layer(mixer, config.mlp())
    chooses = router(config, SOFTMAX, count(config, "n_routed_experts"), normed=config.flag("norm_topk_prob"))
    return config.layer(mixer, with_shared(config, grouped(config, scaled(config, chooses))))


FAMILY = Family(
    "mistral4",
    "Mistral4ForCausalLM",
    _layer,
    defaults={
        **KEYS,
        **EXPERTS,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_nope_head_dim": 64,
        "num_key_value_heads": 32,
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-6,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 0,
        "rope_interleave": True,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    mapped=MAPPED,
    example={"num_key_value_heads": 4},
)
