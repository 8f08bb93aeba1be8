"""What a bench runs: every combination of its numbers, and nothing beyond the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from support.engines import PicoEngine

import llmc
from llmc.cli.judge.speed import Load, measure, refuse_smaller, sweep
from llmc.cli.judge.subjects import subject
from llmc.runtime.errors import RecipeError, ResourceError


def test_a_sweep_is_the_product_of_its_numbers(pico_engine: PicoEngine):
    judged = subject(str(pico_engine("int8")), None)
    assert sweep("128, 256", "64", "1,8", judged) == [
        *(Load(128, 64, 1), Load(128, 64, 8), Load(256, 64, 1), Load(256, 64, 8))
    ]
    for numbers in (("0", "2", "1"), ("1", "1", "1"), ("1", "2", "0"), ("1,,2", "2", "1"), ("1", "2", "-1")):
        with pytest.raises(RecipeError, match=r"expected --\S+ as whole numbers from [12], with commas between them"):
            sweep(*numbers, judged)
    with pytest.raises(RecipeError, match="expected --batch of at most 8, the engine's\n  found: 9"):
        sweep("1", "2", "1,9", judged)
    with pytest.raises(RecipeError, match="of at most 512 together, the context\n  found: 500 and 13"):
        sweep("1,500", "13", "1", judged)


@dataclass
class Small:
    """What a GPU with little memory says of itself."""

    max_batch: int = 2
    max_context: int = 64


def test_a_batch_that_would_wait_is_not_measured():
    small: Any = Small()
    refuse_smaller(small, [Load(8, 4, 2)])
    with pytest.raises(ResourceError, match="cannot run 3 prompts at the same time here\n  found: memory for 2"):
        refuse_smaller(small, [Load(8, 4, 3)])
    with pytest.raises(RecipeError, match="of at most 64 together"):
        refuse_smaller(small, [Load(62, 4, 1)])


def test_every_token_has_its_own_moment(pico_engine: PicoEngine):
    """A reader that wakes up late sees many tokens at one moment: 240,000 tokens/s were shown so."""
    with llmc.load(pico_engine("int8")) as engine:
        with engine.stream([5, 6], max_tokens=8, temperature=0.0, ignore_eos=True) as stream:
            stream.result()
            times = stream.request.times
        assert len(times) == 8 and times == sorted({*times})
        found = measure(engine, Load(8, 4, 2), repeat=1)
        assert found.ttft > 0 < found.decode
