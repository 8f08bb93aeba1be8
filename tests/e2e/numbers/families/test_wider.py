"""Launch plans of all that the records can say (`dense/wider.py`), interpreted, agree with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.engines import relative
from support.samples.dense import wider
from support.samples.families import uncompiled
from support.samples.simulated import answers_of

from llmc.compiler.families.spec import DecoderSpec
from llmc.compiler.targets.cuda import emit

BOUND = 3e-2
"""Largest max|a-b| / max|b| of logits: activations are bfloat16 between operators, of one layer or two."""


def _layers(records: Callable[[DecoderSpec], DecoderSpec], *layers: int, soak: bool = True) -> object:
    name = "-".join((records.__name__, *map(str, layers)))
    return pytest.param(records, layers, id=name, marks=[pytest.mark.soak] if soak else [])


@pytest.mark.parametrize(
    ("records", "layers"),
    [
        _layers(wider.attention, 0, 5, soak=False),
        *(_layers(wider.attention, index) for index in (1, 2, 3, 4, 6)),
        _layers(wider.around, 0, 1, soak=False),
        *(_layers(wider.activations, index) for index in range(9)),
    ],
)
def test_logits_and_tokens_are_the_oracles(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: Callable[[DecoderSpec], DecoderSpec],
    layers: Sequence[int],
) -> None:
    monkeypatch.setattr(emit, "compile_all", uncompiled)
    answer = answers_of(tmp_path, records, layers)
    assert relative(answer.found, answer.expected) < BOUND
    answer.require_near(BOUND)
