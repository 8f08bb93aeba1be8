"""config.json: real files of the Llama family read without a flag and as transformers reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.paths import SAMPLES

from llmc.compiler.families.config import parse_config
from llmc.compiler.families.spec import GatedMlp

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
    decoder, theirs_of = config.decoder, theirs.__getattribute__
    layer = decoder.layers[0]
    assert decoder.layers == (layer,) * theirs.num_hidden_layers
    assert layer.mixer_norm is not None and layer.mixer.rope is not None
    assert isinstance(layer.mlp, GatedMlp)
    found = {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": layer.mlp.up.rows,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": decoder.positions,
        "tie_word_embeddings": decoder.tied,
        "num_attention_heads": layer.mixer.heads,
        "num_key_value_heads": layer.mixer.kv_heads,
        "head_dim": layer.mixer.head_dim,
        "attention_bias": layer.mixer.q.bias,
        "mlp_bias": layer.mlp.down.bias,
        "rms_norm_eps": layer.mixer_norm.epsilon,
        "hidden_act": layer.mlp.activation,
        "initializer_range": config.initializer_range,
    }
    assert found == {key: theirs_of(key) for key in found}
    assert f"torch.{config.dtype}" == str(theirs.dtype)
    eos = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert (config.bos_id, list(config.eos_ids)) == (theirs.bos_token_id, sorted(eos))
    rope = dict(theirs.rope_parameters)
    ours = layer.mixer.rope
    assert (ours.type, ours.theta) == (rope["rope_type"], rope["rope_theta"])
    for key, value in ours.parameters.items():
        assert rope.get(key, value) == value, key
    assert config.accepted == ()
    unaccounted = raw.keys() - config.ignored.keys()
    assert unaccounted <= USED_BY_LLAMA, unaccounted - USED_BY_LLAMA
