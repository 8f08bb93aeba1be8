"""Routers that are easier to compare with transformers' function than with a formula of our own."""

from __future__ import annotations

import numpy as np
import torch
from support.graphs import run_operator

from llmc.runtime.dtypes import SPARSEMIXER


def test_sparsemixer_is_that_of_transformers() -> None:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    logits = np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    logits[0] = 1.0  # all equal
    experts, weights = run_operator("Route", SPARSEMIXER, {"logits": logits}, ["e", "w"], k=2, jitter=0.05)
    expected, chosen = sparsemixer(torch.from_numpy(logits), jitter_eps=0.05, training=False)
    assert experts[1:].tolist() == chosen[1:].tolist()
    np.testing.assert_allclose(weights[1:], expected[1:].numpy(), rtol=1e-5)
    np.testing.assert_allclose(weights[0], expected[0].numpy(), rtol=1e-5)
