"""Launch plans of all that the records can say of experts (`mixtures/wider.py`), interpreted, agree with the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import relative
from support.samples.families import uncompiled
from support.samples.mixtures import wider
from support.samples.simulated import answers_of

from llmc.compiler.targets.cuda import emit
from llmc.passes.graph.experts import PART, Mixture
from llmc.passes.graph.graph import BLOCK, Graph
from llmc.passes.rewrite.rule import replace_value
from llmc.quantize import FORMATS
from llmc.runtime.engine_file.bind import Slice, Stored

BOUNDS: Mapping[str, float] = {"none": 3e-2, **dict.fromkeys(FORMATS, 6e-2)}
"""Largest max|a-b| / max|b| of logits of one layer, as in `test_wider.py` and `test_dense.py`."""
SIZES = {"hidden_size": 128, "intermediate_size": 128}
"""Blocks of 128 weights."""


def _layers() -> Iterator[object]:
    """Every layer; every format with one that has biases and limits, and with a shared expert."""
    for index in range(8):
        yield pytest.param(index, "none", id=f"{index}", marks=[] if index == 3 else [pytest.mark.soak])
    for quantize in FORMATS:
        for index in (2, 3):
            every = (quantize, index) == ("int4", 2)
            yield pytest.param(index, quantize, id=f"{index}-{quantize}", marks=[] if every else [pytest.mark.soak])


@pytest.mark.parametrize(("layer", "quantize"), _layers())
def test_logits_and_tokens_are_the_oracles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int, quantize: str
) -> None:
    monkeypatch.setattr(emit, "compile_all", uncompiled)
    answer = answers_of(tmp_path, wider.mixtures, (layer,), quantize, **SIZES)
    assert relative(answer.found, answer.expected) < BOUNDS[quantize]
    answer.require_near(BOUNDS[quantize])


@pytest.mark.soak
@pytest.mark.parametrize("layer", range(len(wider.ROUTERS)), ids=wider.ROUTERS)
def test_tokens_choose_the_experts_that_the_oracle_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """But for tokens whose next expert is so near that rounding decides: of one layer only their own rows differ."""
    monkeypatch.setattr(emit, "compile_all", uncompiled)
    answer = answers_of(tmp_path, wider.choosing, (layer,))
    error = np.abs(answer.found - answer.expected).max(axis=1) / np.abs(answer.expected).max()
    assert (error < BOUNDS["none"]).mean() >= 0.9


def _cut(graph: Graph) -> None:
    """Let two mixtures compute each mixture: the first expert, and the others, as ranks of unequal parts do."""
    for node in [node for node in graph.nodes if node.op_type == "MoE"]:
        mixture = Mixture.of(node.overload)
        g = graph.build(node.metadata_props.get(BLOCK, ""), node)
        attributes = {name: one.value for name, one in node.attributes.items()}
        made = []
        for start, stop in ((0, 1), (1, wider.EXPERTS)):
            stacks = []
            for value in node.inputs[3:]:
                expr = graph.expr(value)
                assert value is not None and isinstance(expr, Stored)
                stacks.append(graph.weight(f"{value.name}.{start}", Slice(expr, 0, start, stop), widen=False))
            overload = f"{mixture.overload}__{PART}"
            made.append(g.llmc("MoE", *node.inputs[:3], *stacks, overload=overload, start=start, **attributes))
        replace_value(node.outputs[0], g("Add", *made))
        graph.body.remove(node, safe=True)
    graph.remove_dead()


def _cut_what_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = emit.draft

    def cut_first(graph: Graph, *others: Any) -> Any:
        _cut(graph)
        assert sum(node.op_type == "MoE" for node in graph.nodes) == 2
        return drafted(graph, *others)

    monkeypatch.setattr(emit, "draft", cut_first)


@pytest.mark.parametrize("layer", [2, *(pytest.param(index, marks=pytest.mark.soak) for index in (3, 4))])
def test_parts_of_the_experts_compute_together_what_all_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """Steps of one token too: then a part has a row or none. A shared expert with a gate is added to both at once."""
    monkeypatch.setattr(emit, "compile_all", uncompiled)
    _cut_what_is_drafted(monkeypatch)
    answer = answers_of(tmp_path, wider.mixtures, (layer,))
    assert relative(answer.found, answer.expected) < BOUNDS["none"]
    answer.require_near(BOUNDS["none"])
