"""How many experts of a mixture a step reads: what prices of steps and of loads on the CPU and on GPUs count."""

from __future__ import annotations


def expected_experts(experts: int, chosen: int, tokens: float) -> float:
    """The expected number of experts that some token chose, if each of `tokens` chooses `chosen` of all alike.

    Routers are not that even, and neighbouring tokens choose alike: so this is what can be said before a model runs.
    """
    return experts * (1.0 - (1.0 - chosen / experts) ** tokens)
