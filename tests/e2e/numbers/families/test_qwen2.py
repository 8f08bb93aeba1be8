"""Qwen 2: biases of q, k and v, tied heads, windows of upper layers."""

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
    "plain": Case(),
    "tied, sharded": Case({"tie_word_embeddings": True}, torch.bfloat16, sharded=True),
    "old spelling": Case({"num_key_value_heads": 1}, torch.float16, old=True),
    "a window that is off": Case({"sliding_window": 8, "max_window_layers": 0}),
    "windows of upper layers": Case(WINDOW | {"num_hidden_layers": 3}),
    "windows of all layers": Case(WINDOW | {"max_window_layers": 0}, torch.bfloat16),
    "layer types": Case(WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}),
}


read = partial(families.read, "Qwen2ForCausalLM")


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    check_against_transformers(answers(write(tmp_path / "c", "qwen2", case)), tmp_path)


@pytest.mark.parametrize("quantize", ["none", *FORMATS])
def test_every_format_agrees_with_its_oracle(tmp_path: Path, quantize: str) -> None:
    check_format(write(tmp_path / "c", "qwen2", Case(WINDOW | WIDE | {"max_window_layers": 0})), quantize, tmp_path, 40)


@pytest.mark.parametrize("quantize", ["none", pytest.param("int4", marks=pytest.mark.soak)])
def test_the_launch_plan_agrees_with_the_oracle(tmp_path: Path, quantize: str) -> None:
    case = Case(WINDOW | PLANNED | {"max_window_layers": 0}, torch.bfloat16)
    check_simulated(write(tmp_path / "c", "qwen2", case), quantize, tmp_path, 100)


def test_windows_are_of_the_layers_that_transformers_gives_them() -> None:
    """transformers 5.23, Qwen2Config: use_sliding_window is false, max_window_layers 28, sliding_window 4096."""
    layers = {"num_hidden_layers": 30}
    assert {layer.mixer.window for layer in read(sliding_window=8, **layers).layers} == {None}
    absent = read(use_sliding_window=True, **layers).layers
    assert [layer.mixer.window for layer in absent] == [None] * 28 + [4096] * 2
    assert read(use_sliding_window=True, max_window_layers=0, sliding_window=None).layers[0].mixer.window is None
    assert (absent[0].mixer.q.bias, absent[0].mixer.o.bias) == (True, False)


def test_layer_types_that_say_otherwise_are_refused() -> None:
    with pytest.raises(
        Unsupported, match=r'"layer_types" of full_attention in config.json\n  found: "sliding_attention" in layer 0'
    ):
        read(layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(
        CheckpointError, match=r'"max_window_layers" as an integer from 0 to 4096 in config.json\n  found: null'
    ):
        read(use_sliding_window=True, max_window_layers=None)
    with pytest.raises(CheckpointError, match=r'"layer_types" as a list of num_hidden_layers \(2\) entries'):
        read(use_sliding_window=True, layer_types=["full_attention"])
