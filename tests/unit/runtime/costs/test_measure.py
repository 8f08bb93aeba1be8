"""Measuring runs every chain on this machine; how long one takes is no matter of a test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmc.runtime.costs import chains, measure
from llmc.runtime.costs.facts import TOKENS


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_ROWS", 256), ("_COLUMNS", 128), ("_COUNT", 2), ("_REPEAT", 1), ("_MANY", 4)):
        monkeypatch.setattr(measure, name, value)


def test_all_facts_are_numbers(once: None):
    done: list[int] = []
    facts = measure.measure(1, done.append)
    assert sum(done) == measure.STEPS
    assert [(one.bits, one.block) for one in facts.products] == list(measure.LAYOUTS)
    assert all(0 < number < math.inf for one in facts.products for number in one.weight_s)
    assert all(len(one.weight_s) == len(TOKENS) for one in facts.products)
    assert facts.threads == 1 and facts.build is None
    assert facts.element_s.keys() == {"norm", "activation", "other"}


@pytest.mark.parametrize(("bits", "block"), measure.LAYOUTS)
def test_a_chain_multiplies_by_its_weights(bits: int, block: int):
    """Codes and scales are all equal, so each product is a sum of its input."""
    chain = chains.products(bits, block, 256, 128, 2, 1)
    assert (chain.width, chain.made, chain.weights) == (128, 128, 2 * 256 * 128)
    (_, result, _), _ = chain.call(3)()
    assert result.shape == (1, 3, 128) and np.isfinite(result).all()
