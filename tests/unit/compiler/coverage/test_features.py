"""The words of a decoder's records: each is there for a record that has it, and only for those."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llmc.compiler.config.rope import RopeConfig
from llmc.compiler.coverage.features import features
from llmc.compiler.coverage.rows import SIZES
from llmc.compiler.families import FAMILIES
from llmc.compiler.families.config import parse_config
from llmc.compiler.families.latent import KEYS, latent
from llmc.compiler.families.reading import ConfigReader
from llmc.compiler.families.spec import (
    LAYER,
    Experts,
    Linear,
    Norm,
    Parameter,
    PlainMlp,
    Router,
    Stack,
    Temperature,
)
from llmc.runtime.dtypes import CHOSEN, LIMITED, SIGMOID, SOFTMAX, SPARSEMIXER

LLAMA = parse_config(json.dumps({**SIZES, "architectures": ["LlamaForCausalLM"]})).decoder
FIRST = LLAMA.layers[0]
MIXER, MLP = FIRST.mixer, FIRST.mlp
NORM = Norm("n", 512, 1e-6)
HEAD = Norm("n", MIXER.head_dim, 1e-6)
ROPE = RopeConfig("default", 10_000.0, {})
OF_ATTENTION: dict[str, dict[str, Any]] = {
    "biases of q, k and v": {"q": replace(MIXER.q, bias=True)},
    "bias of the output": {"o": replace(MIXER.o, bias=True)},
    "fused q, k and v": {"q": replace(MIXER.q, part=("qkv", 0, 1024))},
    "qk-norm of each head": {"q_norm": HEAD},
    "qk-norm of all heads together": {"q_norm": NORM},
    "qk-norm after rope": {"norm_after_rope": True},
    "norms of values": {"v_norm": HEAD},
    "windows": {"window": 8},
    "layers without rope": {"rope": None},
    "rope of a part of a head": {"rope": replace(ROPE, size=32)},
    "interleaved rope": {"rope": replace(ROPE, interleaved=True)},
    "queries scaled by their position": {"temperature": Temperature(0.1, 64)},
    "own scale of scores": {"scale": 1.0},
    "capped scores": {"softcap": 50.0},
    "attention sinks": {"sinks": Parameter("s", (4,))},
    "values that are the keys": {"v": None},
    "keys and values shared by layers": {"source": 0, "k": None, "v": None},
}
LATENT = latent(ConfigReader({**SIZES, **KEYS, "num_key_value_heads": 4}, FAMILIES["DeepseekV3ForCausalLM"], "x"))
BARE = replace(LATENT, rope=replace(LATENT.rope, interleaved=False), q_down=None, q_norm=None)
OF_LATENT: dict[str, dict[str, Any]] = {
    "queries of a low rank": {"q_down": LATENT.q_down},
    "biases of ranks": {"kv_down": replace(LATENT.kv_down, bias=True)},
    "bias of the output": {"o": replace(LATENT.o, bias=True)},
    "interleaved rope": {"rope": LATENT.rope},
    "queries scaled by their position": {"temperature": Temperature(0.1, 64)},
    "own scale of scores": {"scale": 1.0},
}
OF_LAYER: dict[str, dict[str, Any]] = {
    "LayerNorm": {"mixer_norm": replace(NORM, kind=LAYER)},
    "norms x (1 + w)": {"mixer_norm": replace(NORM, plus_one=True)},
    "norms after sublayers": {"mixer_norm": None, "mixer_post": NORM},
    "norms before and after sublayers": {"mixer_post": NORM},
    "attention and MLP side by side": {"parallel": True},
    "scaled residuals": {"residual_scale": 0.5},
    "a factor of each layer": {"scalar": Parameter("s", (1,))},
    "MLP without a gate": {"mlp": PlainMlp("silu", Linear("up", 1024, 512), Linear("down", 512, 1024))},
    "fused gate and up": {"mlp": replace(MLP, gate=Linear("gate", 1024, 512, part=("gate_up", 0, 2048)))},
    "MLP biases": {"mlp": replace(MLP, down=replace(MLP.down, bias=True))},
    "relu in the MLP": {"mlp": replace(MLP, activation="relu")},
}
EXPERTS = Experts(
    Router(SOFTMAX, Linear("gate", 4, 512, kept=True), 2),
    Stack("gate_up", 4, 256, 512, (), gated=True),
    Stack("down", 4, 512, 128, ()),
    "silu",
)
ROUTER = EXPERTS.router
OF_EXPERTS: dict[str, Experts] = {
    "experts weighted by a softmax": EXPERTS,
    "experts weighted by sigmoids": replace(EXPERTS, router=replace(ROUTER, kind=SIGMOID)),
    "experts weighted by a softmax of the chosen": replace(EXPERTS, router=replace(ROUTER, kind=CHOSEN)),
    "experts chosen by SparseMixer": replace(EXPERTS, router=replace(ROUTER, kind=SPARSEMIXER)),
}
BESIDE: dict[str, Experts] = {
    "weights of experts divided by their sum": replace(EXPERTS, router=replace(ROUTER, normed=True)),
    "a factor of experts' weights": replace(EXPERTS, router=replace(ROUTER, factor=2.5)),
    "a bias that chooses experts": replace(EXPERTS, router=replace(ROUTER, bias=Parameter("b", (4,)))),
    "groups of experts": replace(EXPERTS, router=replace(ROUTER, groups=2)),
    "bias of routers": replace(EXPERTS, router=replace(ROUTER, linear=replace(ROUTER.linear, bias=True))),
    "biases of experts": replace(EXPERTS, gate_up=replace(EXPERTS.gate_up, bias=True)),
    "gates of experts with limits": replace(EXPERTS, activation=LIMITED),
    "experts whose input is scaled": replace(EXPERTS, scales_input=True),
    "shared experts": replace(EXPERTS, shared=MLP),
    "shared experts with a gate": replace(EXPERTS, shared=MLP, shared_gate=Linear("g", 1, 512)),
    "gelu in the MLP": replace(EXPERTS, activation="gelu"),
}
"""Each beside experts weighted by a softmax."""
OF_DECODER: dict[str, dict[str, Any]] = {
    "scaled embeddings": {"embedding_scale": 2.0},
    "scaled logits": {"logits_scale": 0.5},
    "capped logits": {"logits_softcap": 30.0},
    "bias of the head": {"head_bias": True},
    "no more positions than an indexer chooses": {"limit": "why"},
}


def test_llama_has_nothing_beyond_itself():
    assert features(LLAMA) == ()


@pytest.mark.parametrize("words", OF_ATTENTION)
def test_of_attention(words: str):
    mixer = replace(MIXER, **OF_ATTENTION[words])
    assert features(replace(LLAMA, layers=(replace(FIRST, mixer=mixer),))) == (words,)


def test_of_latent_attention_only_its_own_words_are_said():
    assert features(replace(LLAMA, layers=(replace(FIRST, mixer=BARE),))) == ("latent attention",)


@pytest.mark.parametrize("words", OF_LATENT)
def test_of_latent_attention(words: str):
    mixer = replace(BARE, **OF_LATENT[words])
    assert features(replace(LLAMA, layers=(replace(FIRST, mixer=mixer),))) == ("latent attention", words)


@pytest.mark.parametrize("words", OF_LAYER)
def test_of_a_layer(words: str):
    assert features(replace(LLAMA, layers=(FIRST, replace(FIRST, **OF_LAYER[words])))) == (words,)


@pytest.mark.parametrize("words", OF_EXPERTS)
def test_of_a_mixture(words: str):
    assert features(replace(LLAMA, layers=(replace(FIRST, mlp=OF_EXPERTS[words]),))) == (words,)


@pytest.mark.parametrize("words", BESIDE)
def test_beside_a_softmax(words: str):
    found = features(replace(LLAMA, layers=(replace(FIRST, mlp=BESIDE[words]),)))
    assert found == ("experts weighted by a softmax", words)


def test_some_layers_have_experts():
    """The widths of experts and of other layers are not compared."""
    found = features(replace(LLAMA, layers=(FIRST, replace(FIRST, mlp=EXPERTS))))
    assert found == ("experts weighted by a softmax", "layers without experts")


@pytest.mark.parametrize("words", OF_DECODER)
def test_around_the_layers(words: str):
    assert features(replace(LLAMA, **OF_DECODER[words])) == (words,)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("different head sizes", {"head_dim": 64, "scale": 64**-0.5}),
        ("different key and value heads", {"kv_heads": 1}),
        ("different rope by layer", {"rope": replace(ROPE, theta=1e6)}),
    ],
)
def test_layers_that_differ(words: str, changed: dict[str, Any]):
    assert features(replace(LLAMA, layers=(FIRST, replace(FIRST, mixer=replace(MIXER, **changed))))) == (words,)


def test_widths_that_differ():
    narrow = replace(FIRST, mlp=replace(MLP, down=Linear("down", 512, 512)))
    assert features(replace(LLAMA, layers=(FIRST, narrow))) == ("different MLP widths",)
