"""Fits the constants of the cost model to the H100 columns, and to nothing else."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from statistics import mean

from llmc.compiler.planner.rates import Rates

from . import predict
from .figures import ON_H100

START = Rates(memory=0.8, cache=0.8, product=0.7, attention=0.5, link=0.8, launch=2e-6, step=1e-3, sequence=3e-6)
"""`memory` stays: AIConfigurator's share for all GPUs (`systems/*.yaml`, mem_bw_empirical_scaling_factor)."""
SEARCHED = ("cache", "product", "attention", "link", "launch", "step", "sequence")
MOST = {"cache": 0.95, "product": 0.95, "attention": 0.95, "link": 1.0}
"""Shares that no kernel exceeds."""
_STEPS = (0.3, 0.1, 0.04, 0.015, 0.005)
"""Of logarithms: the search goes over to the next when no constant gets better by one."""


def fitted() -> Rates:
    """The least mean |log(predicted / published)|, found by changing one constant at a time."""
    found, best = START, loss(START)
    for step in _STEPS:
        improved = True
        while improved:
            improved = False
            for name in SEARCHED:
                for factor in (math.exp(step), math.exp(-step)):
                    changed = replace(found, **{name: min(MOST.get(name, 1.0), getattr(found, name) * factor)})
                    if (error := loss(changed)) < best - 1e-6:
                        found, best, improved = changed, error, True
                        break
        print(f"steps of {step}: {best:.4f}", file=sys.stderr)
    return Rates(**{name: float(f"{value:.3g}") for name, value in vars(found).items()})


def loss(rates: Rates) -> float:
    """Mean |log(predicted / published)| of the fitted figures."""
    found = [predict.throughput(figure, rates).decode / figure.tokens_per_s for figure in ON_H100.figures]
    return mean(abs(math.log(ratio)) for ratio in found)
