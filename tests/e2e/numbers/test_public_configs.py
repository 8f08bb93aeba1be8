"""config.json: real files of the Llama family read without a flag and as transformers reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.paths import SAMPLES

from llmc.compiler.config.config import parse_config

PUBLIC: dict[str, dict[str, Any]] = json.loads((SAMPLES / "llama_configs.json").read_text())
USED_BY_LLAMA = {
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
} | {"head_dim", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings", "dtype"} | {
    "torch_dtype", "pad_token_id", "initializer_range", "layer_types", "rope_parameters", "rope_scaling", "rope_theta",
    "quantization_config",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_config_needs_no_flag_and_reads_as_transformers_reads_it(name: str) -> None:
    from transformers import LlamaConfig

    raw = PUBLIC[name]
    config = parse_config(json.dumps(raw))
    theirs: Any = LlamaConfig(**json.loads(json.dumps(raw)))
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert getattr(config, key) == getattr(theirs, key), key
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "attention_bias", "mlp_bias"):
        assert getattr(config, key) == getattr(theirs, key), key
    for key in ("rms_norm_eps", "hidden_act", "tie_word_embeddings", "initializer_range"):
        assert getattr(config, key) == getattr(theirs, key), key
    assert f"torch.{config.dtype}" == str(theirs.dtype)
    eos = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert (config.bos_id, list(config.eos_ids)) == (theirs.bos_token_id, sorted(eos))
    rope = dict(theirs.rope_parameters)
    assert (config.rope.type, config.rope.theta) == (rope["rope_type"], rope["rope_theta"])
    for key, value in config.rope.parameters.items():
        assert rope.get(key, value) == value, key
    assert config.accepted == ()
    unaccounted = raw.keys() - config.ignored.keys()
    assert unaccounted <= USED_BY_LLAMA, unaccounted - USED_BY_LLAMA
