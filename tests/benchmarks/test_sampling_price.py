"""The static price of choosing a token is that of the kernels as they are, below its goal, and what was predicted."""

from __future__ import annotations

import json
import sys

import pytest
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu_predictions  # pyright: ignore[reportMissingImports]
import sampling_price  # pyright: ignore[reportMissingImports]

GOAL_US = 100


def test_the_price_on_file_is_computed_again():
    made = sampling_price.priced()
    held = json.loads((ROOT / "benchmarks/results/sampling_price.json").read_text())
    assert json.loads(json.dumps(made)) == held, "run python benchmarks/sampling_price.py"
    assert made["after"]["us"] <= GOAL_US < made["before"]["us"]
    predicted = set(gpu_predictions.MORE_MS.values())
    assert all(made["after"]["us"] <= 1e3 * more <= 1.5 * made["after"]["us"] for more in predicted)


def test_a_part_is_issued_by_four_schedulers_and_waits():
    part = sampling_price.Part("one", instructions=100, times=3, warps=8, waits=2, passes=1)
    clocks = 3 * (100 * 8 / 4 + 2 * 30)
    assert part.seconds == pytest.approx(clocks / 1.7e9 + 0.8e-6)
