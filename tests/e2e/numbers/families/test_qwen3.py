"""Qwen 3: norms of the heads of q and k, a head size of its own, windows of upper layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from support.samples import families
from support.samples.families import (
    PLANNED,
    WIDE,
    Case,
    answers,
    check_against_transformers,
    check_format,
    check_simulated,
    write,
)

from llmc.quantize import FORMATS
from llmc.runtime.errors import CheckpointError, Unsupported

WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
CASES = {
    "plain": Case({"head_dim": 32}),
    "head 128, tied": Case({"head_dim": 128, "tie_word_embeddings": True}, torch.bfloat16),
    "head 24, biases": Case({"head_dim": 24, "attention_bias": True}, torch.float16, sharded=True, old=True),
    "head 20": Case({"head_dim": 20}),
    "windows of upper layers": Case(WINDOW | {"head_dim": 32, "num_hidden_layers": 3}),
}


read = partial(families.read, "Qwen3ForCausalLM")


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    check_against_transformers(answers(write(tmp_path / "c", "qwen3", case)), tmp_path)


@pytest.mark.parametrize("quantize", ["none", *FORMATS])
def test_every_format_agrees_with_its_oracle(tmp_path: Path, quantize: str) -> None:
    check_format(write(tmp_path / "c", "qwen3", Case(WINDOW | WIDE | {"max_window_layers": 0})), quantize, tmp_path, 40)


@pytest.mark.parametrize(
    "quantize", ["int8", *(pytest.param(name, marks=pytest.mark.soak) for name in ("none", "int4"))]
)
def test_the_launch_plan_agrees_with_the_oracle(tmp_path: Path, quantize: str) -> None:
    case = Case(WINDOW | PLANNED | {"max_window_layers": 0}, torch.bfloat16)
    check_simulated(write(tmp_path / "c", "qwen3", case), quantize, tmp_path, 100)


def test_the_head_size_is_128_unless_the_config_says_otherwise() -> None:
    """transformers 5.23, Qwen3Config: head_dim = 128, whatever hidden_size and num_attention_heads are."""
    assert read().layers[0].mixer.head_dim == 128
    mixer = read(head_dim=32, rms_norm_eps=1e-3).layers[0].mixer
    assert mixer.q_norm is not None and (mixer.head_dim, mixer.q_norm.size, mixer.q_norm.epsilon) == (32, 32, 1e-3)


def test_a_bias_that_is_no_flag_is_refused() -> None:
    with pytest.raises(CheckpointError, match='"attention_bias" as true or false'):
        read(attention_bias="yes")
    with pytest.raises(Unsupported, match='"sliding_attention" in layer 1'):
        read(layer_types=["full_attention", "sliding_attention"])
