"""The Llama family against transformers: every variant's logits from the oracle and from a built engine in chunks.

transformers is imported where it is used: it takes seconds, and every process that tests collects this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import build_engine, checkpoint_logits
from support.samples.families import BOUND, CONFIG, LENGTH, NEW, Case, Written, answers, difference, write

import llmc
from llmc.recipes.recipe import Recipe
from llmc.runtime.cpu import executor as cpu
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import CheckpointError

ORIGINAL = 16
"""The trained length of rope types that depend on it."""
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [1.5 + i / 4 for i in range(8)],
}


def _rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": settings}


CASES: dict[str, Case] = {
    "gqa": Case(_rope(rope_type="default", rope_theta=5e5)),
    "mha, old spelling": Case({"num_key_value_heads": 4}, torch.float16, old=True),
    "mqa": Case({"num_key_value_heads": 1}, torch.bfloat16),
    "head 24, tied": Case({"head_dim": 24, "tie_word_embeddings": True}, torch.bfloat16, sharded=True),
    "head 20, one group of 3": Case(
        {"hidden_size": 48, "head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1}
    ),
    "head 80": Case({"head_dim": 80, "hidden_act": "swish"}, torch.float16, sharded=True, old=True),
    "head 8, groups of 7": Case({"hidden_size": 56, "head_dim": 8, "num_attention_heads": 14}),
    "attention bias": Case({"attention_bias": True}, torch.bfloat16, old=True),
    "mlp bias": Case({"mlp_bias": True, "tie_word_embeddings": True}),
    "both biases": Case({"attention_bias": True, "mlp_bias": True}, torch.float16, sharded=True),
    "linear": Case(_rope(rope_type="linear", rope_theta=1e4, factor=2.5)),
    "linear, old spelling": Case(_rope(rope_type="linear", rope_theta=2e4, factor=2.5), torch.bfloat16, old=True),
    "dynamic": Case({"max_position_embeddings": ORIGINAL, **_rope(rope_type="dynamic", rope_theta=1e4, factor=2.0)}),
    "dynamic, old spelling": Case(
        {"max_position_embeddings": ORIGINAL, **_rope(rope_type="dynamic", rope_theta=1e4, factor=3.0)}, old=True
    ),
    "llama3": Case(
        _rope(
            rope_type="llama3",
            rope_theta=1e4,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=ORIGINAL,
        ),
        torch.bfloat16,
        old=True,
    ),
    "yarn": Case(_rope(**_YARN)),
    "yarn, mscale, not truncated": Case(_rope(**_YARN, mscale=0.7, mscale_all_dim=1.2, truncate=False), old=True),
    "yarn, attention factor": Case(_rope(**_YARN, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0)),
    "longrope": Case(_rope(**_LONG)),
    "longrope, factor, old spelling": Case(_rope(**_LONG, factor=8.0), torch.float16, old=True),
    "longrope, attention factor": Case(_rope(**_LONG, attention_factor=1.1)),
}


@pytest.fixture(scope="module", params=CASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return answers(write(tmp_path_factory.mktemp("checkpoint"), "llama", CASES[request.param]))


def test_oracle_agrees_with_transformers(written: Written) -> None:
    assert difference(checkpoint_logits(written.path, written.ids), written.logits) < BOUND


def test_engine_agrees_with_transformers(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt runs in six calls, then tokens are generated one by one up to the end of the context."""
    monkeypatch.setattr(cpu, "MAX_PREFILL", 7)
    path = llmc.build(written.path, tmp_path / "a.llmc", max_context=LENGTH, max_batch=2)
    with llmc.load(path) as engine:
        assert difference(engine.logits(written.ids), written.logits) < BOUND
        result = engine.generate(written.ids[: LENGTH - NEW], max_tokens=NEW)
    assert result.token_ids == written.continuation


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), "llama", CASES["gqa"])


def test_generation_is_transformers_own(plain: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    prompt = np.random.default_rng(2).integers(0, CONFIG["vocab_size"], 9).tolist()
    model: Any = LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32)
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    with llmc.load(llmc.build(plain, tmp_path / "a.llmc")) as engine:
        assert engine.generate(prompt, max_tokens=12).token_ids == expected[0, 9:].tolist()


# --- accounting: each tensor of the checkpoint is used or named unused, each parameter has a source ---


Tensors = dict[str, torch.Tensor]


@pytest.fixture
def edited(plain: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the plain checkpoint with its tensors, and perhaps its config, changed."""

    def edit(change: Callable[[Tensors], object], **config: Any) -> Path:
        folder = tmp_path / "edited"
        folder.mkdir()
        tensors = load_file(plain / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        values = json.loads((plain / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return edit


def _refusal(path: Path, out: Path, recipe: Recipe | None = None) -> str:
    """What the build says; it must leave nothing behind."""
    out.mkdir()
    with pytest.raises(CheckpointError) as caught:
        build_engine(path, out / "a.llmc", recipe or Recipe())
    assert list(out.iterdir()) == []
    return str(caught.value)


def _rename(old: str, new: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def test_disagreements_come_in_one_table(edited: Callable[..., Path], tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(64)
        tensors["model.norm.weight"] = torch.ones(63)

    message = _refusal(edited(change), tmp_path / "out")
    assert "tensors of LlamaForCausalLM\n  found: 3 disagreements:" in message
    assert "model.layers.1.mlp.up_proj.weight: expected [96, 64], found nothing" in message
    assert "model.layers.1.self_attn.q_proj.bias: expected nothing, found [64]" in message
    assert "model.norm.weight: expected [64], found [63]" in message
    assert "config.json that belongs to these weights" in message


def test_a_misspelt_tensor_is_named_with_its_neighbour(edited: Callable[..., Path], tmp_path: Path) -> None:
    name = "model.layers.0.input_layernorm.weight"
    message = _refusal(edited(_rename(name, "model.layers.0.input_layer_norm.weight")), tmp_path / "out")
    assert f"{name}: expected [64], found nothing (did you mean 'model.layers.0.input_layer_norm.weight'?)" in message


def test_a_long_table_is_cut(edited: Callable[..., Path], tmp_path: Path) -> None:
    path = edited(lambda tensors: None, num_hidden_layers=9)
    message = _refusal(path, tmp_path / "out")
    assert "63 disagreements" in message and "and 43 more" in message
    assert message.count(": expected") == 20


def test_a_transposed_weight_is_refused(edited: Callable[..., Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    path = edited(lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    assert f"{name}: expected [64, 96], found [96, 64]" in _refusal(path, tmp_path / "out")


def test_a_missing_head_is_refused_while_untied(edited: Callable[..., Path], tmp_path: Path) -> None:
    message = _refusal(edited(lambda tensors: tensors.pop("lm_head.weight")), tmp_path / "out")
    assert "lm_head.weight: expected [200, 64], found nothing" in message


@pytest.mark.parametrize("change", ["value", "shape", "dtype"])
def test_another_head_is_refused_while_tied(edited: Callable[..., Path], tmp_path: Path, change: str) -> None:
    def put_head(tensors: Tensors) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        if change == "value":
            head[199, 63] += 1e-3
        elif change == "shape":
            head = head[:199].clone()
        else:  # the same bits, other numbers
            tensors["model.embed_tokens.weight"] = head.bfloat16()
            head = head.bfloat16().view(torch.float16)
        tensors["lm_head.weight"] = head

    message = _refusal(edited(put_head, tie_word_embeddings=True), tmp_path / "out")
    assert 'expected a head equal to the embedding, as "tie_word_embeddings" in config.json says' in message
    assert "'lm_head.weight' that differs from 'model.embed_tokens.weight'" in message
    assert '"tie_word_embeddings": false' in message


def test_what_is_not_used_is_named_with_a_reason(edited: Callable[..., Path], tmp_path: Path) -> None:
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"

    def add(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors[frequencies] = torch.ones(8)

    report = build_engine(edited(add, tie_word_embeddings=True), tmp_path / "a.llmc", Recipe())
    assert report.unused == {
        "lm_head.weight": "bit-equal to the tied embedding",
        frequencies: "rope tables are computed from the configuration",
    }
    with EngineFile.open(report.path) as engine:
        assert dict(engine.manifest.unused) == report.unused
        assert not {"lm_head.weight", frequencies} & set(engine.tensors)
        assert engine.manifest.lineage["model.embed_tokens.weight"].sources == ("model.embed_tokens.weight",)


@pytest.mark.parametrize(
    ("name", "value", "dtype", "format_name"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan"), torch.float32, "none"),
        ("model.layers.1.mlp.up_proj.weight", float("-inf"), torch.bfloat16, "int4"),
        ("model.layers.0.self_attn.k_proj.weight", float("inf"), torch.float16, "nvfp4"),
        ("model.layers.0.self_attn.k_proj.weight", float("nan"), torch.bfloat16, "fp8"),
        ("model.layers.0.input_layernorm.weight", float("nan"), torch.bfloat16, "int8"),
        ("model.embed_tokens.weight", float("inf"), torch.float16, "none"),
    ],
)
def test_a_weight_that_is_not_finite_is_named(
    edited: Callable[..., Path], tmp_path: Path, name: str, value: float, dtype: torch.dtype, format_name: str
) -> None:
    def poison(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[17] = value

    message = _refusal(edited(poison), tmp_path / "out", Recipe(default_format=format_name))
    assert name in message and "NaN" in message


def test_a_constant_tensor_is_a_warning(edited: Callable[..., Path], tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"

    def fill(tensors: Tensors) -> None:
        tensors[name].fill_(0.0)
        tensors["model.norm.weight"].fill_(1.0)  # norms often are

    path = edited(fill)
    for recipe in (Recipe(), Recipe(default_format="int8")):
        report = build_engine(path, tmp_path / "a.llmc", recipe)
        assert [warning for warning in report.warnings if "constant" in warning] == [f"tensor {name} is constant"]
