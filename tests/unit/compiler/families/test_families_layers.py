"""What configs of dense families turn on in the records, and values that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.samples.families import read

from llmc.compiler.families.spec import LAYER, Attention, GatedMlp, PlainMlp
from llmc.runtime.errors import CheckpointError, LlmcError, Unsupported


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("Ernie4_5ForCausalLM", {"partial_rotary_factor": 0.5}, '"partial_rotary_factor" as 1 (the whole head'),
        ("Ernie4_5ForCausalLM", {"sliding_window": 8}, '"sliding_window" off (null, false or empty)'),
        ("GlmForCausalLM", {"head_dim": 20, "partial_rotary_factor": 0.25}, "an even number of elements"),
        ("Glm4ForCausalLM", {"hidden_act": "relu2"}, '"hidden_act" that an MLP with a gate has'),
        ("Glm4ForCausalLM", {"rms_norm_eps": None}, '"rms_norm_eps" as a number over 0'),
        ("Cohere2ForCausalLM", {"sliding_window": None}, '"sliding_window" as an integer from 1 to'),
        ("Cohere2ForCausalLM", {"sliding_window_pattern": 0}, '"sliding_window_pattern" as an integer from 1 to 4096'),
        ("Cohere2ForCausalLM", {"layer_types": ["linear_attention"] * 2}, '"layer_types" of full_attention'),
        ("Cohere2ForCausalLM", {"logit_scale": None}, '"logit_scale" as a number over 0'),
        ("Cohere2ForCausalLM", {"use_qk_norm": True}, 'expected "use_qk_norm" as false in config.json\n  found: true'),
        ("Cohere2ForCausalLM", {"use_parallel_block": False}, 'expected "use_parallel_block" as true'),
        ("Cohere2ForCausalLM", {"position_embedding_type": "alibi"}, '"position_embedding_type" as "rope_gptj"'),
        ("Cohere2ForCausalLM", {"layer_norm_eps": 0}, '"layer_norm_eps" as a number over 0'),
        ("StableLmForCausalLM", {"head_dim": 32}, 'expected "head_dim" as 16 in config.json\n  found: 32'),
        ("StableLmForCausalLM", {"partial_rotary_factor": 0.3125}, "found: 0.3125 of 16: 5"),
        ("Starcoder2ForCausalLM", {"layer_norm_epsilon": 1e-6}, 'expected "layer_norm_epsilon" as 1e-05'),
        ("Starcoder2ForCausalLM", {"norm_type": "rms_norm"}, 'expected "norm_type" as "layer_norm"'),
        ("Starcoder2ForCausalLM", {"mlp_type": "gated"}, 'expected "mlp_type" as "default"'),
        ("Starcoder2ForCausalLM", {"sliding_window": 0}, '"sliding_window" as an integer from 1 to'),
        ("ArceeForCausalLM", {"hidden_act": "mish"}, 'expected "hidden_act" as one of silu'),
        (
            "ApertusForCausalLM",
            {"rope_theta": 5e5},
            'expected "rope_theta" as 12000000.0 in config.json\n  found: 500000.0',
        ),
        ("ApertusForCausalLM", {"post_norm": True}, 'expected "post_norm" as false'),
        ("ApertusForCausalLM", {"qk_norm": False}, 'expected "qk_norm" as true'),
    ],
)
def test_what_is_not_computed_is_refused(architecture: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmcError) as caught:
        read(architecture, **changes)
    assert isinstance(caught.value, CheckpointError | Unsupported)
    assert said in str(caught.value)


def test_what_turns_the_layers_of_cohere2() -> None:
    """Three of four have a window and rope; `layer_types` wins over the pattern."""
    layers = read("Cohere2ForCausalLM", num_hidden_layers=5).layers
    assert [layer.mixer.window for layer in layers] == [4096, 4096, 4096, None, 4096]
    assert [layer.mixer.rope is None for layer in layers] == [False, False, False, True, False]
    kinds = ["full_attention", "sliding_attention"]
    layers = read("Cohere2ForCausalLM", sliding_window_pattern=1, layer_types=kinds).layers
    assert [layer.mixer.window for layer in layers] == [None, 4096]


def test_switches() -> None:
    row, side = (read("StableLmForCausalLM", use_parallel_residual=switch).layers[0] for switch in (False, True))
    assert row.mlp_norm is not None and not row.parallel and side.mlp_norm is None and side.parallel
    assert row.mixer.q_norm is None
    normed = read("StableLmForCausalLM", qk_layernorm=True).layers[0].mixer
    assert isinstance(normed, Attention) and normed.q_norm is not None and normed.k_norm is not None
    assert (normed.q_norm.each, normed.k_norm.each, normed.q_norm.kind) == (4, 2, LAYER)
    coder = read("Starcoder2ForCausalLM", sliding_window=8, use_bias=False).layers[0]
    assert coder.mixer.window == 8 and not any(linear.bias for linear in coder.linears())
    mlps = [read("ApertusForCausalLM", hidden_act=act).layers[0].mlp for act in ("xielu", "relu2")]
    assert [len(mlp.parameters) for mlp in mlps if isinstance(mlp, PlainMlp)] == [4, 0]
    fused = read("Glm4ForCausalLM").layers[0].mlp
    assert isinstance(fused, GatedMlp) and fused.up.part == ("mlp.gate_up_proj", 96, 192)
