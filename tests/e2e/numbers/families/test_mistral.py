"""Mistral: one window for all layers, or none; null and an absent key are not the same."""

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

import llmc
from llmc.quantize import FORMATS
from llmc.runtime.errors import CheckpointError, Unsupported
from llmc.runtime.probe import replay

CASES = {
    "window 8": Case({"sliding_window": 8}),
    "window 1": Case({"sliding_window": 1}),
    "window 17, old spelling": Case({"sliding_window": 17}, torch.bfloat16, old=True),
    "no window": Case({"sliding_window": None, "head_dim": 32}, torch.float16, sharded=True),
    "a window longer than the context": Case({"sliding_window": 40}),
    "head 24": Case({"sliding_window": 8, "head_dim": 24}),
    "head 20": Case({"sliding_window": 8, "head_dim": 20}),
}


read = partial(families.read, "MistralForCausalLM")


@pytest.mark.parametrize("name", CASES)
def test_logits_and_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    check_against_transformers(answers(write(tmp_path / "c", "mistral", case)), tmp_path)


@pytest.mark.parametrize("quantize", ["none", *FORMATS])
def test_every_format_agrees_with_its_oracle(tmp_path: Path, quantize: str) -> None:
    check_format(write(tmp_path / "c", "mistral", Case({"sliding_window": 8} | WIDE)), quantize, tmp_path, 40)


@pytest.mark.soak  # windows in plans are test_qwen2.py's and test_window_plans.py's
@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_the_launch_plan_agrees_with_the_oracle(tmp_path: Path, quantize: str) -> None:
    case = Case({"sliding_window": 8} | PLANNED, torch.bfloat16)
    check_simulated(write(tmp_path / "c", "mistral", case), quantize, tmp_path, 100)


@pytest.mark.parametrize("window", [1, 8, 20])
def test_the_probe_of_a_window_shorter_than_it_is_replayed(tmp_path: Path, window: int) -> None:
    path = write(tmp_path / "c", "mistral", Case({"sliding_window": window} | WIDE))
    assert replay(llmc.build(path, tmp_path / "a.llmc")).ok


def test_an_absent_window_is_4096_and_null_is_none() -> None:
    """transformers 5.23, MistralConfig: sliding_window = 4096, num_key_value_heads = 8, positions 131072."""
    assert {layer.mixer.window for layer in read(sliding_window=...).layers} == {4096}
    assert {layer.mixer.window for layer in read(sliding_window=None).layers} == {None}
    absent = read(num_attention_heads=16, num_key_value_heads=..., max_position_embeddings=...)
    assert (absent.layers[0].mixer.kv_heads, absent.positions) == (8, 131072)
    assert read(num_key_value_heads=None).layers[0].mixer.kv_heads == 4


def test_windows_that_are_none_are_refused() -> None:
    with pytest.raises(CheckpointError, match='"sliding_window" as an integer from 1 to'):
        read(sliding_window=0)
    with pytest.raises(
        Unsupported, match=r'"layer_types" of sliding_attention in config.json\n  found: "full_attention" in layer 1'
    ):
        read(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
