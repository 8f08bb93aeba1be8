"""Bytes of a predicted build are those of the build; seconds follow from given facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.engines import small_checkpoint
from support.paths import PICO

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.engine import weights
from llmc.compiler.engine.layout import default_reserve, lay_out
from llmc.compiler.pipeline import context_of, lower
from llmc.compiler.planner.build_price import KERNEL_S, build_sizes, predict_build
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.costs.facts import BuildFacts, FormatFacts
from llmc.runtime.dtypes import WEIGHT_FORMATS

MIXED = (QuantizeRule("model.layers.*.self_attn.k_proj", "int8"), QuantizeRule("*.o_proj", "none"))
RECIPES = {
    **{name: Recipe(default_format=name) for name in ("none", *WEIGHT_FORMATS)},
    "head": Recipe(default_format="int4", rules=(QuantizeRule("lm_head", "none"),)),
    "mixed": Recipe(default_format="nvfp4", rules=MIXED),
}
LATENT = {
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "kv_lora_rank": 128, "q_lora_rank": 128},
    **{"qk_nope_head_dim": 48, "qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1, "n_group": 1},
    **{"topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "biases": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "experts": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "mlp_only_layers": [1],
    },
    "no rope, scaled queries": {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "num_local_experts": 2,
        "no_rope_layer_interval": 2,
    },
}
LATENTS: dict[str, dict[str, Any]] = {
    "all ranks": {**LATENT, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"},
    "queries without a rank, factors": {
        **LATENT,
        **{"architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4", "q_lora_rank": None},
        "rope_parameters": {
            **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0},
            "llama_4_scaling_beta": 0.1,
        },
        "rope_theta": None,
    },
}
FACTS = BuildFacts(
    start_s=1.0,
    layer_s=2.0,
    graph_s=3.0,
    probe_s=4.0,
    finish_s=5.0,
    disk_read_byte_s=0.0,
    disk_write_byte_s=1e-3,
    hash_byte_s=0.0,
    peak_bytes=300,
    formats=(FormatFacts("none", 1.0, 0.5), FormatFacts("int8", 2.0, 0.25)),
)


def require_exact(checkpoint: Path, recipe: Recipe) -> None:
    source = open_source(checkpoint, random_weights=None if checkpoint == PICO else 0)
    context = context_of(recipe, source)
    decoder, _, _ = lower(source, recipe, context)
    tensors = decoder.graph.canonical
    groups = weights.groups(tensors)
    sizes = build_sizes(source, recipe, context, sections=5)
    assert sizes.bytes == lay_out(groups, default_reserve(groups, 5), None)[0].end
    assert sum(sizes.source_bytes.values()) == weights.source_bytes(tensors, source.source)


@pytest.mark.parametrize("name", RECIPES)
def test_bytes_are_those_of_the_layout(name: str):
    require_exact(PICO, RECIPES[name])


@pytest.mark.parametrize("recipe", ["none", "int8", "mixed"])
@pytest.mark.parametrize("config", CONFIGS)
def test_bytes_of_other_models_are_those_of_the_layout(tmp_path: Path, config: str, recipe: str):
    require_exact(small_checkpoint(tmp_path / config, **CONFIGS[config]), RECIPES[recipe])


@pytest.mark.parametrize("recipe", ["none", "int8"])
@pytest.mark.parametrize("config", LATENTS)
def test_bytes_of_latent_attention_are_those_of_the_layout(tmp_path: Path, config: str, recipe: str):
    require_exact(small_checkpoint(tmp_path / config, **LATENTS[config]), RECIPES[recipe])


def test_seconds_and_memory_follow_from_the_facts():
    source = open_source(PICO, random_weights=0)
    recipe = Recipe(default_format="int8", max_batch=2)
    price = predict_build(source, recipe, FACTS, context=512, threads=2, section_bytes=1000)
    sizes = build_sizes(source, recipe, 512, sections=3)
    copied, quantized = sizes.source_bytes["none"], sizes.source_bytes["int8"]
    assert (copied, quantized) == (8 * 2 * 256 * 2 + 256 * 2, 2 * 7_340_032)
    assert price.stages == {
        "graph and passes": 3.0 + 2.0 * 8,
        "compile profiles": 0.0,
        "weights": copied * 1.0 + quantized * 2.0,
        "golden probe": 4.0 + (copied / 2 * 0.5 + quantized / 2 * 0.25),
        "finish file": 5.0 + (sizes.bytes + 1000) * 1e-3,
    }
    assert price.seconds == sum(price.stages.values())
    assert (price.peak_bytes, price.bytes) == (300, sizes.bytes + 1000)
    limited = predict_build(source, recipe, FACTS, context=512, threads=2, memory_limit=250)
    assert limited.peak_bytes == 250


def test_kernels_that_are_compiled_share_the_cores():
    price = predict_build(open_source(PICO), Recipe(default_format="int8"), FACTS, context=512, threads=2)
    more = price.with_kernels(3)
    assert more.seconds == pytest.approx(price.seconds + 3 * KERNEL_S / 2)
    assert more.stages["compile profiles"] == pytest.approx(3 * KERNEL_S / 2)
    assert price.with_kernels(0) == price


def test_a_format_that_was_not_measured_has_no_price():
    with pytest.raises(KeyError):
        predict_build(open_source(PICO), Recipe(default_format="fp8"), FACTS, context=512, threads=2)
