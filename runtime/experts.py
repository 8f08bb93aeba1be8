"""Mixtures of experts: names of routers, for records and graphs; and how many experts a step reads, for prices."""

from __future__ import annotations

SOFTMAX, SIGMOID, CHOSEN, SPARSEMIXER = "softmax", "sigmoid", "chosen", "sparsemixer"
"""Kinds of routers by their scores. CHOSEN is the softmax of the chosen logits alone (GPT-OSS). SPARSEMIXER
(Phi 3.5 MoE, arXiv 2409.12136) chooses its two experts one after the other."""
LIMITED = "limited"
"""The activation of GPT-OSS: (up + 1) * gate * sigmoid(alpha * gate), with gate at most `limit` and up within it."""


def expected_experts(experts: int, chosen: int, tokens: float) -> float:
    """The expected number of experts that some token chose, if each of `tokens` chooses `chosen` of all alike.

    Routers are not that even, and neighbouring tokens choose alike: so this is what can be said before a model runs.
    """
    return experts * (1.0 - (1.0 - chosen / experts) ** tokens)
