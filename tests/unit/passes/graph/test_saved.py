"""A saved graph comes back as it was, and a file that is none is refused by name, whatever is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import graphs

from llmc.passes import model_passes, run_phase
from llmc.passes.graph.graph import Canonical, Computed, Graph
from llmc.passes.graph.saved import MARK, metadata_comments, restore, saved_text
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.errors import RecipeError

AT = {"phase": "model"}
EXAMPLE = (
    "(int64[2,3] ids, float[384,128] T, float[256,128] W) => (float[2,3,256] y, float[2,3,384] h) "
    "{ e = llmc.Embedding:f32(ids, T) y = llmc.Linear:f32(e, W) h = llmc.Linear:f32(e, T) }"
)


def example() -> Graph:
    """Two quantized linears and an embedding: all three origins of tensors, names of modules, fresh names."""
    graph = graphs.parse(EXAMPLE).graph
    for number, node in enumerate(graph.nodes):
        node.name = f"node {number}"
        node.metadata_props["module"] = f'{node.outputs[0].name} "<b>'
    run_phase(model_passes(lambda name: "int8" if name.startswith("y") else "none"), graph)
    table = Canonical("rope", "F32", (2, 3), Computed(np.ones((2, 3), np.float32), "cos"), "rope")
    graph.weight("rope", graph.store(table))
    return graph


def text_of(graph: Graph) -> str:
    return saved_text(graph.text(), AT, metadata_comments(graph))


def test_a_graph_comes_back_as_it_was(tmp_path: Path) -> None:
    graph = example()
    path = tmp_path / "g.txt"
    path.write_text(text_of(graph), encoding="utf-8")
    onnx.parser.parse_graph(path.read_text())
    found, at, unchanged = restore(path)
    assert (at, unchanged) == (AT, True)
    assert text_of(found) == text_of(graph)
    path.write_text(text_of(graph).replace("F32", "F16"), encoding="utf-8")
    assert not restore(path)[2]
    assert (found.weights, list(found.canonical)) == (graph.weights, list(graph.canonical))
    assert found.fresh("x") == graph.fresh("x")
    assert [n.metadata_props for n in found.nodes] == [n.metadata_props for n in graph.nodes]
    rope = found.canonical["rope"].origin
    assert isinstance(rope, Computed) and (rope.data.shape, rope.how) == ((2, 3), "cos")
    assert {type(one.origin).__name__ for one in found.canonical.values()} == {"Copied", "Quantized", "Computed"}
    assert isinstance(found.expr(found.body.inputs[1]), Stored)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.partition(MARK)[0], "no line that begins what ONNX text leaves out"),
        (lambda text: text[:-9], r"JSON"),
        (lambda text: text.replace('# "names"', '# "serial"'), "only known keys: 'serial'|the key 'names'"),
        (lambda text: text.replace('"op": "stored"', '"op": "sotred"'), "did you mean 'stored'"),
        (lambda text: text.replace('"block": "layer.0"', '"block": 3', 1), "labels of node|a string"),
        (lambda text: text.replace('"block": "layer.0"', '"black": "layer.0"', 1), "labels of node"),
        (lambda text: text.replace('"dtype": "F32"', '"dtype": "F31"'), "unknown dtype 'F31'"),
        (lambda text: text.replace('"computed": "cos"', '"copied": "x", "computed": "cos"'), "origin of tensor 'rope'"),
        (lambda text: text.replace("llmc.Linear:f32 ", "llmc.Linear:f33 "), "every llmc operator has a definition"),
        (lambda text: text.replace("{\n", "{\n y = Add (", 1), "Error|error"),
        (lambda text: "g (" + "seq(" * 10_000 + text, "brackets more than 64 deep"),
        (lambda text: text.replace("# {", "# " + "[" * 10_000, 1), "nested at most"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Callable[[str], str], reason: str) -> None:
    path = tmp_path / "g.txt"
    text = text_of(example())
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"^expected a saved graph in {re.escape(str(path))}\n  found: ") as caught:
        restore(path)
    assert re.search(reason, caught.value.found), caught.value.found
    assert caught.value.fix == "a file that --dump has written"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("none", "No such file"), (".", "a folder"), ("binary", "codec can't decode")):
        with pytest.raises(RecipeError, match=f"{re.escape(str(tmp_path / name))}") as caught:
            restore(tmp_path / name)
        assert reason in str(caught.value)
