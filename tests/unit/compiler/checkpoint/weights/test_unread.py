"""What a model may leave unread: the kinds of buffers that exporters saved, and nothing that could be a weight."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.checkpoints import CONFIG
from support.samples.families import read

from llmc.compiler.checkpoint.weights.unread import grouped, left_out_parts, part_of, why_unread
from llmc.compiler.families.config import parse_config
from llmc.runtime.files.safetensors import TensorInfo

SPEC = parse_config(json.dumps(CONFIG).encode(), accept=(), what="config.json").decoder
LAYER = "model.layers.0.self_attn."


def reason(name: str, dtype: str, *shape: int) -> str | None:
    return why_unread(TensorInfo(name, dtype, shape, 0, 0), SPEC)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("model.position_ids", "I64", (1, 128)),
        ("model.causal_mask", "BOOL", (1, 1, 8, 8)),
        ("model.causal_mask", "F32", (1, 1, 8, 8)),
        (f"{LAYER}masked_bias", "F32", ()),
        (f"{LAYER}bias", "U8", (1, 1, 8, 8)),
        (f"{LAYER}bias", "F32", (1, 1, 8, 8)),
        ("model.layers.0.attn.bias", "F16", (1, 1, 8, 8)),
        ("model.seen_tokens", "I32", ()),
        ("model.freqs_cis", "C64", (8, 2)),
        ("model.anything", "C64", (8,)),
        ("inv_freq", "F32", (4,)),
        ("model.rotary_emb.inv_freq", "BF16", (4,)),
        ("model.rotary_emb.original_inv_freq", "F32", (4,)),
        (f"{LAYER}rotary_emb.cos_cached", "F32", (1, 1, 8, 4)),
        (f"{LAYER}rotary_emb.sin_cached", "F16", (8, 4)),
    ],
)
def test_buffers(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert reason(name, dtype, *shape)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        (f"{LAYER}q_proj.bias", "F32", (8,)),
        (f"{LAYER}q_norm.weight", "BF16", (4,)),
        (f"{LAYER}bias", "F32", (8,)),
        (f"{LAYER}q_proj.weight_scale", "F8_E8M0", (8, 1)),
        (f"{LAYER}k_scale", "F32", ()),
        (f"{LAYER}sinks", "F32", (2,)),
        ("model.layers.1.mlp.down_proj.weight", "F8_E4M3", (8, 16)),
        ("model.embed_positions.weight", "F32", (8, 8)),
        ("lm_head.bias", "F32", (10,)),
        ("lm_head.weight", "F32", (10, 8)),
        ("model.my_inv_freq", "F32", (4,)),
        ("model.anything", "F64", (4,)),
    ],
)
def test_what_could_be_a_weight(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    assert reason(name, dtype, *shape) is None


def test_keys_of_a_layer_that_takes_those_of_another() -> None:
    """Published files of Gemma 4 E2B have them, and transformers 5.23 ignores them (Gemma4TextModel.__init__)."""
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    spec = read(
        "Gemma4ForCausalLM",
        num_hidden_layers=3,
        layer_types=kinds,
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=0,
        head_dim=32,
    )
    found = {
        name: why_unread(TensorInfo(f"model.layers.{name}.weight", "BF16", (8, 8), 0, 128), spec)
        for name in ("2.self_attn.k_proj", "2.self_attn.v_proj", "2.self_attn.k_norm", "2.self_attn.q_proj", "1.mlp.x")
    }
    why = "layer 2 attends to the keys and values of layer 0"
    assert [*found.values()] == [why, why, why, None, None]


def test_names_of_layers_are_one_group() -> None:
    layers = [f"model.layers.{index}.self_attn.masked_bias" for index in range(32)]
    assert grouped([*layers, "model.position_ids"]) == "model.layers.*.self_attn.masked_bias (32), model.position_ids"
    assert grouped(layers[:1]) == layers[0]
    assert grouped(map(str, "abcdefgh")) == "a, b, c, d, e, f and 2 more"


def test_a_part_that_is_left_out_is_there_once():
    parts = {"visual": "vision tower", "mlp1": "projector of images"}
    names = ["model.visual.a.weight", "model.visual.b.0.bias", "mlp1.0.weight", "model.norm.weight", "visuals.x"]
    assert [part_of(name, parts, SPEC) for name in names] == ["model.visual", "model.visual", "mlp1", None, None]
    assert left_out_parts(names, parts, SPEC) == {
        "model.visual": "vision tower left out: 2 tensors",
        "mlp1": "projector of images left out: 1 tensor",
    }


def test_layers_that_draft_tokens_are_there_once():
    """GLM and DeepSeek number them on, ERNIE and Qwen give them modules of their own."""
    last = len(SPEC.layers)
    numbered = [f"model.layers.{last}.mlp.experts.{one}.up_proj.weight" for one in range(300)]
    numbered += [f"model.layers.{last}.eh_proj.weight", f"model.language_model.layers.{last + 1}.enorm.weight"]
    named = ["mtp.fc.weight", "model.mtp_block.0.mlp.gate.weight", "model.mtp_linear_proj.0.weight"]
    other = ["model.layers.0.x", f"model.layers.{last + 2}.x", "mtpx.y", "model.norm.mtp.weight", "mtp"]
    drafting = replace(SPEC, drafts=2)
    assert left_out_parts([*numbered, *named, *other], {}, drafting) == {
        f"model.layers.{last}": "an extra layer that drafts tokens: 301 tensors",
        f"model.language_model.layers.{last + 1}": "an extra layer that drafts tokens: 1 tensor",
        "mtp": "an extra layer that drafts tokens: 1 tensor",
        "model.mtp_block": "an extra layer that drafts tokens: 1 tensor",
        "model.mtp_linear_proj": "an extra layer that drafts tokens: 1 tensor",
    }
    assert [part_of(name, {}, SPEC) for name in numbered] == [None] * len(numbered)
