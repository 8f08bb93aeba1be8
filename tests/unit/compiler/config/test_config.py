"""config.json: what is understood, what is refused, and that no value is guessed. (Real files: e2e.)"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.config.generation import parse_generation
from llmc.compiler.config.rope import RopeConfig
from llmc.compiler.families.config import Config, parse_config
from llmc.runtime.errors import CheckpointError, LlmcError, RecipeError, Unsupported

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read(accept: tuple[str, ...] = (), **changes: Any):
    values = {key: value for key, value in (TINY | changes).items() if value is not ...}
    return parse_config(json.dumps(values), accept=accept)


def rope_in(config: Config) -> RopeConfig:
    """The rope of its first layer."""
    rope = config.decoder.layers[0].mixer.rope
    assert rope is not None
    return rope


def rope_of(**changes: Any) -> RopeConfig:
    return rope_in(read(**changes))


def refusal(**changes: Any) -> str:
    with pytest.raises(LlmcError) as caught:
        read(**changes)
    return str(caught.value)


def test_what_is_ignored_has_a_reason() -> None:
    config = read(pretraining_tp=2, auto_map={"AutoModel": "evil.Model"}, odd_feature=None, other=[], third=False)
    assert config.ignored["pretraining_tp"] == "it slices the same matrix products; the numbers stay"
    assert config.ignored["odd_feature"] == "null, false or empty: the feature is off"
    assert {"other", "third"} <= config.ignored.keys()
    assert "auto_map: remote code is never imported" in config.notes


def test_unknown_keys_come_in_one_error_with_the_whole_flag_line() -> None:
    changes: dict[str, Any] = {"attn_logit_softcapping": 50.0, "num_experts": 8, "rope_thetta": 1.0, "zero": 0}
    with pytest.raises(CheckpointError) as caught:
        read(**changes)
    message = str(caught.value)
    assert '"attn_logit_softcapping": 50.0, "num_experts": 8' in message
    assert "\"rope_thetta\": 1.0 (did you mean 'rope_theta'?)" in message
    flags = "--accept-config attn_logit_softcapping --accept-config num_experts --accept-config rope_thetta"
    assert f"{flags} --accept-config zero" in message
    config = read(accept=tuple(changes), **changes)
    assert config.accepted == ("attn_logit_softcapping", "num_experts", "rope_thetta", "zero")


def test_accepting_a_key_that_cannot_be_accepted() -> None:
    with pytest.raises(RecipeError, match=r"no such key in config.json \(did you mean 'my_key'"):
        read(accept=("mykey",), my_key=1)
    with pytest.raises(RecipeError, match="the flag is for unknown keys only"):
        read(accept=("hidden_size",))
    with pytest.raises(RecipeError, match="the flag is for unknown keys only"):
        read(accept=("sliding_window",), sliding_window=128)
    assert read(accept=("use_cache",), use_cache=True).accepted == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": ...}, '"hidden_size" as an integer from 1 to 262144 in config.json\n  found: no such key'),
        ({"hidden_size": 64.0}, '"hidden_size" as an integer from 1 to 262144 in config.json\n  found: 64.0'),
        ({"hidden_size": True}, "found: true"),
        ({"hidden_size": -64}, "found: -64"),
        ({"vocab_size": 0}, '"vocab_size" as an integer from 1 to 16777216 in config.json\n  found: 0'),
        ({"num_hidden_layers": 10**30}, '"num_hidden_layers" as an integer from 1 to 2048'),
        ({"intermediate_size": "128"}, 'found: "128"'),
        (
            {"num_key_value_heads": 3},
            '"num_key_value_heads" as a divisor of num_attention_heads (4) in config.json\n  found: 3',
        ),
        ({"hidden_size": 66}, '"hidden_size" as a multiple of num_attention_heads (4), as there is no head_dim'),
        ({"head_dim": 15}, '"head_dim" as an even number (rotary embedding turns pairs) in config.json\n  found: 15'),
        ({"rms_norm_eps": 0}, '"rms_norm_eps" as a number over 0 and up to 1 in config.json\n  found: 0'),
        ({"rms_norm_eps": "1e-5"}, 'found: "1e-5"'),
        ({"attention_bias": 1}, '"attention_bias" as true or false in config.json\n  found: 1'),
        ({"tie_word_embeddings": "yes"}, '"tie_word_embeddings" as true or false'),
        (
            {"eos_token_id": 2**31},
            "token ids (one, a list, or null) in config.json\n  found: 2147483648",
        ),
        ({"eos_token_id": [2, "3"]}, 'found: [2, "3"]'),
        ({"bos_token_id": [1, 2]}, '"bos_token_id" as at most one token id'),
        ({"hidden_act": "relu2"}, "that an MLP with a gate has (silu, gelu, gelu_pytorch_tanh, relu) in config.json"),
        (
            {"torch_dtype": "int8"},
            '"dtype" as one of bfloat16, float16, float32, half, float, auto in config.json\n  found: "int8"',
        ),
        (
            {"sliding_window": 4096},
            '"sliding_window" off (null, false or empty) in config.json\n  found: 4096: attention that sees',
        ),
        ({"is_causal": False}, '"is_causal" as true in config.json\n  found: false: attention to later tokens'),
        ({"rope_interleaved": True}, '"rope_interleaved" off'),
        ({"is_encoder_decoder": True}, "an encoder beside the decoder"),
        ({"layer_types": ["full_attention"]}, '"layer_types" as a list of num_hidden_layers (2) entries'),
        ({"layer_types": ["full_attention", "sliding_attention"]}, 'found: "sliding_attention" in layer 1'),
        ({"architectures": ["GPT2LMHeadModel"]}, "\n  found: GPT2LMHeadModel"),
        ({"architectures": ["LlamaModel", "B"]}, '"architectures" as a list of one name'),
        ({"architectures": ..., "model_type": "gpt2"}, 'found: no architectures, model_type "gpt2"'),
        (
            {"model_type": "mistral"},
            '"architectures" and "model_type" of one family in config.json\n  found: LlamaForCausalLM and "mistral"',
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, 'found: quant_method "gptq"'),
        ({"quantization_config": {"bits": 4}}, 'found: quant_method "unnamed"'),
        ({"quantization_config": "fp8"}, '"quantization_config" as an object'),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, 'quant_method "compressed-tensors"'),
        (
            {"partial_rotary_factor": 0.5},
            '"partial_rotary_factor" as 1 (the whole head is rotated) in config.json\n  found: 0.5',
        ),
        ({"rope_theta": 1}, '"rope_theta" as a number over 1 and up to 1e+15'),
        ({"rope_scaling": "linear"}, '"rope_scaling" as an object'),
        ({"rope_scaling": {"type": "ntk"}}, "a rope type of default, linear, dynamic, llama3, yarn, longrope"),
        ({"rope_scaling": {"type": "yarm", "factor": 2.0}}, "'yarm' (did you mean 'yarn'?)"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, 'as the same as "type"'),
        (
            {"rope_scaling": {"type": "linear"}},
            '"factor" as a number (this rope type needs it) in "rope_scaling" of config.json\n  found: no such key',
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            '"factor" as a number from 1 to 1e+06 in "rope_scaling" of config.json\n  found: 0.5',
        ),
        ({"rope_scaling": {"type": "linear", "fctor": 2.0}}, "\"fctor\": 2.0 (did you mean 'factor'?)"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, '"low_freq_factor" as a number'),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, '"high_freq_factor" as a number of at least low_freq_f'),
        ({"rope_scaling": {"type": "yarn"}}, '"factor" as a number, or original_max_position_embeddings'),
        (
            {"rope_scaling": YARN | {"beta_slow": 40}},
            '"beta_fast" of at least "beta_slow" in "rope_scaling" of config.json\n  found: 32 and 40',
        ),
        ({"rope_scaling": YARN | {"truncate": 1}}, '"truncate" as true or false'),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, '"factor" as a number, or'),
        (
            {"rope_scaling": {"type": "longrope", "factor": 2, "short_factor": [1.0], "long_factor": [1.0]}},
            '"short_factor" as a list of 8 positive numbers (half of what is rotated of a head)'
            ' in "rope_scaling" of config.json\n  found: [1.0]',
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            '"rope_parameters" and "rope_scaling" to agree',
        ),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, '500000.0 among the rope settings'),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, "false at the top, true in"),
    ],
)  # fmt: skip
def test_refused_with_key_expected_and_found(changes: dict[str, Any], said: str) -> None:
    message = refusal(**changes)
    assert message.startswith("expected ")
    assert said in message


def test_refusals_have_the_right_class() -> None:
    with pytest.raises(Unsupported):
        read(sliding_window=4096)
    with pytest.raises(Unsupported, match="quantize with --quantize"):
        read(quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError):
        read(num_key_value_heads=3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"hidden_size": 64, "hidden_size": 128}', "the key 'hidden_size' twice in one object"),
        (b"[]", "expected a JSON object in config.json\n  found: []"),
        (b'{"a": NaN}', "NaN, which is not a JSON number"),
        (b"[" * 100_000, "nested at most 32 levels deep"),
        (b"<!DOCTYPE html>", "found: an HTML page, not the file itself"),
    ],
)
def test_damaged_json(data: bytes, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config(data)
    assert said in str(caught.value)


def test_text_config_is_resolved_and_reported() -> None:
    config = read(text_config={"tie_word_embeddings": True, "hidden_size": 64, "model_type": "x"})
    assert config.decoder.tied
    assert "tie_word_embeddings = true: found in text_config only" in config.notes
    assert read().decoder.tied is False


def test_defaults_are_those_of_the_architecture_and_are_told() -> None:
    config = read(
        max_position_embeddings=..., rms_norm_eps=..., eos_token_id=..., bos_token_id=..., num_key_value_heads=...
    )
    decoder = config.decoder
    assert (decoder.positions, decoder.norm.epsilon, decoder.layers[0].mixer.kv_heads) == (2048, 1e-6, 4)
    assert (config.bos_id, config.eos_ids, config.eos_given) == (1, (2,), False)
    assert rope_in(config).theta == 10_000.0
    assert "max_position_embeddings = 2048: the default of the architecture" in config.notes
    assert read(eos_token_id=None).eos_ids == ()
    assert read(eos_token_id=[7, 2, 7]).eos_ids == (2, 7)
    assert any(note.startswith("pad_token_id = 100: not in the vocabulary") for note in read(pad_token_id=100).notes)
    assert read(head_dim=32, hidden_size=66).decoder.layers[0].mixer.head_dim == 32


def test_both_spellings_of_dtype() -> None:
    assert read(dtype="bfloat16").dtype == read(torch_dtype="torch.bfloat16").dtype == "bfloat16"
    assert read().dtype is None
    assert "dtype = float16: torch_dtype says float32" in read(dtype="float16", torch_dtype="float32").notes


def test_rope_is_normalised() -> None:
    old = rope_of(rope_theta=5e5, rope_scaling=dict(LLAMA3, original_max_position_embeddings=64))
    new = rope_of(rope_parameters=dict(LLAMA3, original_max_position_embeddings=64, rope_theta=5e5))
    nested = {"full_attention": dict(LLAMA3, original_max_position_embeddings=64, rope_theta=5e5)}
    assert old == new == rope_of(rope_parameters=nested)
    assert old.parameters["original_max_position_embeddings"] == 64
    yarn = read(rope_scaling=YARN | {"mscale": 0.7, "finetuned": True, "low_freq_factor": 1.0})
    assert rope_in(yarn).parameters == {
        "original_max_position_embeddings": 64, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True,
        "mscale": 0.7,
    }  # fmt: skip
    assert yarn.ignored["rope_scaling.low_freq_factor"] == "rope type yarn has no such parameter"
    other = read(rope_scaling=YARN | {"attn_factor": 0.8782488562869419})  # DeepSeek-R1-0528-Qwen3-8B
    assert other.ignored["rope_scaling.attn_factor"].startswith("it is for other runtimes")
    assert read(is_causal=True).ignored["is_causal"] == "attention is causal"
    derived = read(rope_scaling={"type": "yarn", "original_max_position_embeddings": 64})
    assert rope_in(derived).parameters["factor"] == 4.0
    assert rope_of(rope_scaling=LLAMA3).parameters["original_max_position_embeddings"] == 256
    outside = read(rope_scaling=LLAMA3, original_max_position_embeddings=128)
    assert rope_in(outside).parameters["original_max_position_embeddings"] == 128
    factors = {"short_factor": [1] * 8, "long_factor": [2.5] * 8}
    longrope = rope_of(rope_scaling={"type": "su", **factors}, original_max_position_embeddings=64)
    assert (longrope.type, longrope.parameters["factor"]) == ("longrope", 4.0)
    assert longrope.parameters["long_factor"] == [2.5] * 8
    assert rope_of(rope_scaling={"rope_type": "default", "factor": 2.0}).parameters == {}


def test_window_leftovers_of_qwen_conversions() -> None:
    config = read(sliding_window=4096, use_sliding_window=False, max_window_layers=28)
    assert config.ignored["sliding_window"] == "use_sliding_window is false"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROPE_KEYS = st.sampled_from(["rope_type", "type", "factor", "rope_theta", "short_factor", "beta_fast", "truncate", "x"])
KEYS = st.sampled_from([*TINY, "rope_scaling", "rope_parameters", "text_config", "quantization_config", "dtype", "zz"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, JSON | st.dictionaries(ROPE_KEYS, JSON, max_size=4), max_size=4))
def test_any_values_give_a_config_or_a_clear_error(changes: dict[str, Any]) -> None:
    try:
        config = parse_config(json.dumps(TINY | changes))
    except LlmcError as refused:
        assert "config.json" in str(refused)
    else:
        mixer = config.decoder.layers[0].mixer
        assert mixer.heads % mixer.kv_heads == 0


def test_generation_config() -> None:
    llama = {"bos_token_id": 1, "eos_token_id": [3, 2], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    read_back = parse_generation(json.dumps(llama | {"transformers_version": "4.31", "top_k": -1}))
    assert read_back.defaults == {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0}
    assert (read_back.bos_id, read_back.eos_ids, read_back.ignored, read_back.notes) == (1, (2, 3), (), ())
    beams = parse_generation('{"num_beams": 4, "typical_p": 1.0, "suppress_tokens": [5], "x": null}')
    assert beams.ignored == ("num_beams", "suppress_tokens")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"temperature": "hot"}',
            '"temperature" as a number from 0 to 10000 in generation_config.json\n  found: "hot"',
        ),
        ('{"top_p": 0}', '"top_p" as a number over 0 and up to 1 in generation_config.json\n  found: 0'),
        ('{"top_k": 1.5}', '"top_k" as an integer from -1'),
        ('{"eos_token_id": [2, 1.5]}', '"eos_token_id" as token ids (one, a list, or null)'),
        ('{"top_k": 1, "top_k": 2}', "the key 'top_k' twice"),
        ("3", "expected a JSON object in generation_config.json\n  found: 3"),
    ],
)
def test_generation_config_refused(text: str, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_generation(text)
    assert said in str(caught.value)
