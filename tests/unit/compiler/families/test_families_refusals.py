"""Values of config.json that a family refuses: with most of them the code of transformers 5.23.0 fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.samples.families import read

from llmc.compiler.families.spec import DecoderSpec, Experts, Temperature
from llmc.runtime.errors import CheckpointError, Unsupported

SLIDING = ["sliding_attention", "full_attention"]
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}, "sliding_attention": None}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 4, "moe_intermediate_size": 32}
ALPHA = {"type": "dynamic", "factor": 1.0, "alpha": 50.0}


def of(kind: str, **changes: Any) -> DecoderSpec:
    if kind == "gemma4":
        changes = {"vocab_size_per_layer_input": 200, "hidden_size_per_layer_input": 16} | changes
    names = {"hunyuan": "HunYuanDenseV1", "smollm3": "SmolLM3", "granite_swa": "GraniteSWA", "gpt_oss": "GptOss"}
    return read(f"{names.get(kind, kind.capitalize())}ForCausalLM", **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("olmo2", {"partial_rotary_factor": 0.5}, '"partial_rotary_factor" as 1 (the whole head is rotated)'),
        ("olmo3", {"sliding_window": None}, '"sliding_window" as an integer from 1 to 2147483647'),
        (
            "olmo3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            '"rope_parameters" as settings of full_attention and sliding_attention, without rope_theta and',
        ),
        ("olmo3", {"rope_parameters": NESTED, "rope_theta": 1e4}, "without rope_theta and rope_scaling"),
        ("olmo3", {"rope_parameters": NESTED, "rope_scaling": YARN}, "without rope_theta and rope_scaling"),
        (
            "olmo3",
            {"layer_types": ["full_attention"] * 2, "rope_scaling": {**YARN, "truncate": False}},
            '"truncate" as true in the rope settings of config.json\n  found: false, which transformers 5 ignores',
        ),
        (
            "exaone4",
            {"sliding_window": None},
            '"layer_types" as a list, as there is no sliding_window, in config.json\n  found: no such key',
        ),
        (
            "exaone4",
            {"sliding_window_pattern": "LLLG"},
            '"sliding_window_pattern" as an integer from 1 to 4096 in config.json\n  found: "LLLG"',
        ),
        (
            "exaone4",
            {"sliding_window": None, "layer_types": SLIDING},
            '"layer_types" of full_attention in config.json\n  found: "sliding_attention" in layer 0',
        ),
        ("smollm3", {"no_rope_layers": [1]}, '"no_rope_layers" as a list of 0 or 1 for each of num_hidden_layers (2)'),
        ("smollm3", {"no_rope_layers": [1, 2]}, "found: [1, 2]"),
        ("smollm3", {"no_rope_layer_interval": 0}, '"no_rope_layer_interval" as an integer from 1 to 4096'),
        ("smollm3", {"layer_types": SLIDING, "sliding_window": 8}, 'found: "sliding_attention" in layer 0'),
        (
            "ministral3",
            {"rope_theta": 5e5},
            'expected one value of "rope_theta" in config.json\n  found: 500000.0 at the top, 1000000.0 among',
        ),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            '"original_max_position_embeddings" as an integer from 1 to 2147483647 in the rope settings of config.json',
        ),
        ("ministral3", {"rope_parameters": YARN}, '"llama_4_scaling_beta" as a number from 0 to 1e+06 in the rope set'),
        (
            "phi3",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "expected a rope type of default, longrope in config.json\n  found: 'linear' in a Phi 3",
        ),
        ("phi3", {"rope_scaling": {**YARN, "original_max_position_embeddings": 4096}}, "found: 'yarn' in a Phi 3"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", **LONG, "original_max_position_embeddings": 16}},
            'one value of "original_max_position_embeddings" in config.json\n  found: 4096 at the top, 16 among',
        ),
        ("phi3", {"sliding_window": 0}, '"sliding_window" as an integer from 1'),
        ("hunyuan", {}, '"head_dim" as an integer from 2 to 4096 in config.json\n  found: no such key'),
        ("hunyuan", {"head_dim": 16, "use_qk_norm": False}, '"use_qk_norm" as true in config.json\n  found: false'),
        ("hunyuan", {"head_dim": 16, "use_cla": True}, "layers that attend to the keys and values of others"),
        (
            "hunyuan",
            {"head_dim": 16, "rope_scaling": {"type": "dynamic", "alpha": 50.0}},
            '"factor" as a number (this rope type needs it)',
        ),
        (
            "hunyuan",
            {"head_dim": 2, "rope_scaling": ALPHA},
            '"head_dim" as a number over 2, as alpha has no value for it, in config.json\n  found: 2',
        ),
        ("gemma4", {"enable_moe_block": True}, 'expected "num_experts" as an integer from 1 to 4096 in config.json'),
        ("gemma4", {"use_bidirectional_attention": "all"}, "attention to later tokens"),
        ("gemma4", {"num_kv_shared_layers": 1}, '"num_kv_shared_layers" as so few that a full_attention layer comes'),
        ("gemma4", {"vocab_size_per_layer_input": 100}, '"vocab_size_per_layer_input" as at least vocab_size (200)'),
        ("gemma4", {"per_layer_config": {"1": 512}}, 'expected "1" as an object in "per_layer_config" of config.json'),
        (
            "gemma4",
            {"per_layer_config": {"1": {"head_dim": "512"}}},
            '"head_dim" as an integer from 1 to 4096 in "1" of',
        ),
        (
            "gemma4",
            {"per_layer_config": {"1": {"sliding_window": 8}}},
            '"sliding_window" as one of head_dim, num_key_va',
        ),
        (
            "gemma4",
            {"per_layer_config": {"1": {"num_key_value_heads": 3}}},
            "key and value heads of layer 1 that divide",
        ),
        (
            "gemma2",
            {"sliding_window": 8, "sliding_window_size": 9},
            '"sliding_window_size" as 8 in config.json',
        ),
        ("hunyuan", {"head_dim": 16, "norm_type": "fused"}, 'expected "norm_type" as "rms" in config.json'),
        ("gemma3", {"attn_logit_softcapping": 50.0}, '"attn_logit_softcapping" as null in config.json'),
        ("granite", {"logits_scaling": 0.0}, '"logits_scaling" as a number over 0 and up to 1e+06'),
        ("granite", {"attention_multiplier": None}, '"attention_multiplier" as a number over 0'),
        ("granite_swa", {"sliding_window": None}, '"sliding_window" as an integer from 1 to 2147483647'),
        ("granite_swa", {"layer_rope_theta": [1e4]}, "a list of 0 or a number over 1 for each of 2 layers in config"),
        ("granite_swa", {"layer_rope_theta": 1e4}, "for each of 2 layers in config.json\n  found: 10000.0"),
        ("granite_swa", {"layer_rope_theta": [0, 1]}, "found: [0, 1]"),
        ("granite_swa", {"layer_rope_theta": [1e4, -1.0]}, "found: [10000.0, -1.0]"),
        ("granite_swa", {"layer_rope_theta": [1e4, False]}, "found: [10000.0, false]"),
        ("gemma4", {**GEMMA4_EXPERTS, "top_k_experts": 5}, '"top_k_experts" as an integer from 1 to 4 in config.json'),
        ("gpt_oss", {"sliding_window": None}, '"sliding_window" as an integer from 1 to 2147483647'),
        ("gpt_oss", {"swiglu_limit": 0.0}, '"swiglu_limit" as a number over 0 and up to 1e+06 in config.json'),
        ("gpt_oss", {"hidden_act": "gelu"}, 'expected "hidden_act" as "silu" in config.json\n  found: "gelu"'),
        ("gpt_oss", {"experts_per_token": 2, "num_experts_per_tok": 4}, '"experts_per_token" as 4 in config.json'),
        ("gpt_oss", {"initial_context_length": 8192}, '"initial_context_length" as 4096 in config.json'),
        ("llama4", {"no_rope_layers": [1]}, '"no_rope_layers" as a list of 0 or 1 for each of 2 layers in config.json'),
        ("llama4", {"no_rope_layers": [1, 2]}, "found: [1, 2]"),
        ("llama4", {"moe_layers": ["1"]}, '"moe_layers" as a list of numbers of layers in config.json'),
        ("llama4", {"attention_chunk_size": None}, '"attention_chunk_size" as an integer from 1 to 2147483647'),
        ("llama4", {"layer_types": ["sliding_attention"] * 2}, '"layer_types" of full_attention in config.json'),
    ],
)
def test_refused_by_message(kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((CheckpointError, Unsupported), match=re.escape(said)):
        of(kind, **changes)


def test_keys_of_published_files_that_change_nothing() -> None:
    assert of("gemma2", sliding_window=8, sliding_window_size=8) == of("gemma2", sliding_window=8)
    same = {"dense_list": [64, 0], "norm_type": "rms", "use_rotary_pos_emb": True, "org_vocab_size": 200, "pad_id": 3}
    assert of("hunyuan", head_dim=16, **same) == of("hunyuan", head_dim=16)
    assert read("Ernie4_5_ForCausalLM", use_rmsnorm=True) == read("Ernie4_5ForCausalLM")
    old = {"norm_eps": 1e-5, "rope_pct": 0.25, "rotary_scaling_factor": 1.0, "layer_norm_eps": 1e-5}
    sizes = {"head_dim": ..., "num_attention_heads": 2}
    assert read("StableLmForCausalLM", **sizes, **old) == read("StableLmForCausalLM", **sizes)
    published = {
        "experts_per_token": 4,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "output_router_logits": False,
    }
    yarn = {**YARN, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    yarn |= {"original_max_position_embeddings": 4096}
    stored = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    published |= {"rope_scaling": yarn, "router_aux_loss_coef": 0.9, "quantization_config": stored}
    assert of("gpt_oss", num_experts_per_tok=4, **published) == of("gpt_oss")
    scout = {"cache_implementation": "hybrid", "for_llm_compressor": False, "moe_layers": [0, 1], "no_rope_layers": []}
    scout |= {"router_jitter_noise": 0.0, "_attn_implementation_autoset": True, "rope_theta": 500000.0}
    assert of("llama4", **scout) == of("llama4")


def test_layers_of_llama_4_differ_by_three_patterns() -> None:
    """Rope and chunks, or neither and hotter queries; experts or a wider MLP; chunks go where one holds the context."""
    spec = of("llama4", num_hidden_layers=4, interleave_moe_layer_step=2, attention_chunk_size=32)
    mixers = [layer.mixer for layer in spec.layers]
    assert [mixer.chunk for mixer in mixers] == [32, 32, 32, None]
    assert (
        [mixer.rope is None for mixer in mixers] == [mixer.q_norm is None for mixer in mixers] == [False] * 3 + [True]
    )
    assert [mixer.temperature for mixer in mixers] == [None] * 3 + [Temperature(0.1, 8192, first=1)]
    assert [isinstance(layer.mlp, Experts) for layer in spec.layers] == [False, True, False, True]
    assert [layer.mixer.chunk for layer in spec.within(33).layers] == [32, 32, 32, None]
    assert [layer.mixer.chunk for layer in spec.within(32).layers] == [None] * 4


def test_su_is_the_first_name_of_longrope() -> None:
    """transformers 5.23.0 renames it too, but fails before, as its check misses the original length."""
    su, longrope = (
        of("phi3", rope_scaling={"type": kind, **LONG}, original_max_position_embeddings=16)
        for kind in ("su", "longrope")
    )
    assert su == longrope and su.layers[0].mixer.rope is not None
    assert su.layers[0].mixer.rope.parameters["factor"] == 4.0


def test_ropes_that_only_some_layers_have() -> None:
    old = of("olmo3", num_hidden_layers=4, rope_theta=1e4, rope_scaling=YARN)
    thetas = [layer.mixer.rope.theta for layer in old.layers if layer.mixer.rope]
    assert thetas == [5e5, 5e5, 5e5, 1e4]
    assert [layer.mixer.rope.type for layer in old.layers if layer.mixer.rope] == ["default"] * 3 + ["yarn"]
    assert [layer.mixer.rope is None for layer in of("smollm3", num_hidden_layers=5).layers] == [0, 0, 0, 1, 0]
    windowed = of("exaone4", sliding_window_pattern=2)
    assert [(layer.mixer.window, layer.mixer.rope is None) for layer in windowed.layers] == [(4096, 0), (None, 1)]
    full = of("exaone4", sliding_window=None, layer_types=["full_attention"] * 2)
    assert [layer.mixer.rope is None for layer in full.layers] == [False, False]


def test_the_temperature_has_the_original_length_of_the_rope() -> None:
    settings = {**YARN, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 64}
    assert of("ministral3", rope_parameters=settings).layers[0].mixer.temperature == Temperature(0.1, 16)
    del settings["original_max_position_embeddings"]
    assert of("ministral3", rope_parameters=settings).layers[0].mixer.temperature == Temperature(0.1, 64)
    assert of("ministral3").layers[0].mixer.temperature == Temperature(0.1, 16384)
