"""What an engine's sections and manifest say of its tokenizer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from support.samples.tokenizers import pico

from llmc.runtime.load import _open_tokenizer


@pytest.mark.parametrize(
    ("named", "expected"),
    (
        ({"bos_token": "<|begin_of_text|>", "pad_token": "<|pad|>"},) * 2,
        (None, {"bos_token": "<s>", "eos_token": ""}),
    ),
    ids=("2.2", "2.1"),
)
def test_named_tokens_of_engines_before_and_after_format_2_2(named: Any, expected: dict[str, str]):
    """The manifest decides; an older engine means what it meant: the strings of tokenizer_config.json, else ""."""
    sections = {
        "tokenizer/tokenizer.json": pico()[0],
        "tokenizer/tokenizer_config.json": json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "x"}).encode(),
        "tokenizer/special_tokens_map.json": b'{"eos_token": "</s>"}',
    }
    manifest = SimpleNamespace(model=SimpleNamespace(named_tokens=named, bos=None))
    file: Any = SimpleNamespace(path="e.llmc", manifest=manifest, sections=sections, section=sections.__getitem__)
    tokenizer, template = _open_tokenizer(file)
    assert tokenizer is not None and (tokenizer.named, template) == (expected, "x")
