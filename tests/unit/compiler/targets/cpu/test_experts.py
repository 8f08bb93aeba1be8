"""The CPU computes the experts that tokens chose, and no others: those hold NaN here, and nothing becomes NaN."""

from __future__ import annotations

import numpy as np
import pytest
from support import graphs

from llmc.compiler.targets.cpu.experts import MoEToProducts, MoEToQMoE, RouteToKernels
from llmc.passes.rewrite.rule import Pass
from llmc.runtime.engine_file.bind import Stored

CHOSEN = (1, 3)
"""Of four experts, the two that every token chooses."""
FIRES = [(item, text) for item in (MoEToQMoE(), MoEToProducts()) for text in item.fires if "part" not in text]


@pytest.mark.parametrize(("item", "text"), FIRES, ids=lambda value: getattr(value, "name", None))
def test_experts_that_nobody_chose_are_not_computed(item: Pass, text: str) -> None:
    example = graphs.parse(text)
    example.inputs["l"] = np.full((2, 3, 4), -1.0, np.float32)
    example.inputs["l"][..., CHOSEN] = 1.0
    assert item.run(example.graph).fired and RouteToKernels().run(example.graph).fired
    expected = graphs.run(example.graph, example.tensors, example.inputs)["y"]
    for stack in ("U", "D"):  # codes are integers, so their scales are what can be NaN
        leaf = example.graph.canonical.get(f"{stack}s") or example.graph.canonical[stack]
        assert isinstance(leaf, Stored) and leaf.shape[0] == 4
        broken = np.array(example.tensors[leaf.name])
        others = [expert for expert in range(4) if expert not in CHOSEN]
        broken[others] = {"BF16": 0x7FC0, "U8": 0x7F, "F8_E4M3": 0x7F}.get(leaf.dtype, np.nan)
        example.tensors[leaf.name] = broken
    found = graphs.run(example.graph, example.tensors, example.inputs)["y"]
    assert np.isfinite(expected).all() and np.array_equal(found, expected)
