"""Graphs of ranks after all passes: optimized like the whole graph, they meet at collectives and read slices."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import relative
from support.samples.split_models import Model, write_config

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.oracle.ranks import join
from llmc.compiler.pipeline import lower
from llmc.passes.graph.graph import Graph
from llmc.passes.graph.meet import verify_meeting
from llmc.passes.graph.verify import LOGICAL, BrokenGraph, verify
from llmc.passes.rewrite.dump import PassReport
from llmc.passes.simplify import Simplify
from llmc.quantize import FORMATS
from llmc.recipes.recipe import Recipe
from llmc.runtime.engine_file.bind import Expr, Slice, Stored
from llmc.runtime.engine_file.split import Split

SPLITS = ("tp2", "pp2", "tp8-pp3")
OPTIMIZED = ("MergeLinears", "FuseAddNorm", "FuseMergedGated", "FuseGated")
Lowered = tuple[dict[str, Graph], tuple[PassReport, ...]]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """Legal graphs for the CPU of int4 weights, of one rank and of SPLITS, which divide the vocabulary."""
    source = open_source(write_config(tmp_path_factory.mktemp("llama"), vocab_size=512), random_weights=0)
    return lower(source, Recipe(default_format="int4", parallel=("tp1", *SPLITS)), 32)[1:]


def test_passes_fire_on_ranks_as_on_the_whole_graph(lowered: Lowered):
    """But for the first norm of a later stage: its residual add is in the stage before."""
    fired: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in lowered[1]:
        fired[report.name][report.profile] += report.fired
    for name in OPTIMIZED:
        for split in map(Split.parse, SPLITS):
            labels = split.labels("cpu")
            for shard in range(split.tp):
                total = sum(fired[name][labels[split.rank(stage, shard)]] for stage in range(split.pp))
                assert total == fired[name]["cpu"] - (split.pp - 1) * (name == "FuseAddNorm"), (name, split)
    assert fired["MergeLinears"]["cpu"] == fired["FuseGated"]["cpu"] == 3 and fired["FuseAddNorm"]["cpu"] == 6


def test_shards_have_equal_graphs_but_for_their_numbers(lowered: Lowered):
    def shape(graph: Graph) -> list[object]:
        own = ("peer", "shard")
        return [
            (node.domain, node.op_type, sorted((k, str(v)) for k, v in node.attributes.items() if k not in own))
            for node in graph.nodes
            if node.op_type != "Constant"  # the first row of a part of the vocabulary, which is shared if it is 0
        ]

    for split in map(Split.parse, SPLITS):
        graphs = [lowered[0][label] for label in split.labels("cpu")]
        verify_meeting(graphs, split)
        for rank, graph in enumerate(graphs):
            assert shape(graph) == shape(graphs[rank - split.shard(rank)])
            assert list(graph.weights) == list(graphs[rank - split.shard(rank)].weights)


def logical(tmp_path: Path, name: str = "tp2-pp2", **config: Any) -> tuple[list[Graph], Split]:
    split = Split.parse(name)
    return Model.of(tmp_path, **config).ranks(split, "none"), split


def collectives(graph: Graph, operator: str) -> list[Any]:
    return [node for node in graph.nodes if node.op_type == operator]


def test_ranks_that_do_not_meet_are_found(tmp_path: Path):
    graphs, split = logical(tmp_path)
    send = collectives(graphs[1], "Send")[0]
    send.attributes.add(type(send.attributes["peer"])("peer", send.attributes["peer"].type, 2))
    with pytest.raises(BrokenGraph, match=r"^rank 0 sends \[0\] to rank 2, which receives \[0\]|^rank 1 sends"):
        verify_meeting(graphs, split)

    graphs, split = logical(tmp_path)
    graphs[2].body.outputs.clear()
    graphs[2].remove_dead()
    with pytest.raises(BrokenGraph, match=r"^rank 2 is at the end when rank 3 is at Recv_1$"):
        verify_meeting(graphs, split)

    graphs, split = logical(tmp_path)
    with pytest.raises(BrokenGraph, match=r"^rank 0 is at AllReduce_\d+ when rank 1 is at Recv_1$"):
        verify_meeting([graphs[0], graphs[2], *graphs[2:]], split)


def received(*numbers: int) -> Graph:
    """A graph that adds up what it receives under these numbers, all from rank 3."""
    graph = Graph.new("ranks")
    b = graph.build("layer.0")
    like = graph.input("x", "F32", [2, 3])
    total = like
    for number in numbers:
        value = b.llmc("Recv", peer=3, number=number)
        value.type, value.shape = like.type, like.shape
        total = b("Add", total, value)
    graph.body.outputs.append(total)
    return graph


def test_two_received_values_are_never_one():
    graph = received(4, 4)
    assert Simplify().run(graph).fired == 0
    assert len(collectives(graph, "Recv")) == 2


def test_numbers_of_values_between_two_ranks_ascend():
    verify(received(0, 2, 5), LOGICAL)
    for numbers in ((0, 0), (3, 1)):
        with pytest.raises(BrokenGraph, match=r"^numbers of values sent to a rank ascend.*: Recv_3$"):
            verify(received(*numbers), LOGICAL)


@pytest.mark.parametrize(("fmt", "bound"), [("none", 3e-6), ("int8", 2e-2)])
def test_joined_legal_graphs_give_the_logits_of_the_whole_graph(tmp_path: Path, fmt: str, bound: float):
    """Kernels of quantized weights round activations to 8 bits on some CPUs; on this one the error was 1e-6 too."""
    model = Model.of(tmp_path, tie_word_embeddings=True)
    split = Split.parse("tp2-pp3")
    legal = lower(model.checkpoint, Recipe(default_format=fmt, parallel=(split.name,)), 32)[1]
    step = model.step(np.random.default_rng(2).integers(0, 509, (1, 9)), [0], [2, 8])
    whole = model.run(model.decoder(fmt).graph, fmt, step)["logits"]
    joined = join([legal[label] for label in split.labels("cpu")], split)
    found = model.run(joined, fmt, model.inputs(split, fmt, step))["logits"]
    assert relative(found, whole) <= bound


def rows_and_columns(expr: Expr) -> tuple[Stored, tuple[tuple[int, int], ...]]:
    """The stored tensor that an expression of a rank reads, and its span along each axis."""
    assert isinstance(expr, Slice | Stored), expr
    leaf = expr.of if isinstance(expr, Slice) else expr
    assert isinstance(leaf, Stored)
    spans = [(0, size) for size in leaf.shape]
    if isinstance(expr, Slice):
        spans[expr.axis] = (expr.start, expr.stop)
    return leaf, tuple(spans)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """2 kv heads, which 4 and 8 shards repeat; biases; a tied head."""
    config: Mapping[str, Any] = {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    return Model.of(tmp_path_factory.mktemp("model"), tie_word_embeddings=True, **config)


@pytest.mark.parametrize("fmt", ["none", *FORMATS])
@pytest.mark.parametrize("tp", [2, 8])
def test_slices_of_all_shards_cover_each_weight_once(model: Model, fmt: str, tp: int):
    graph = model.decoder(fmt).graph
    ranks = model.ranks(Split(tp), fmt)
    assert all(rank.weights.keys() == graph.weights.keys() and rank.canonical == graph.canonical for rank in ranks)
    for name, whole in graph.weights.items():
        assert isinstance(whole, Stored)
        parts = [rows_and_columns(rank.weights[name]) for rank in ranks]
        assert {leaf for leaf, _ in parts} == {whole}
        covered = np.zeros(whole.shape, int)
        for _, spans in parts:
            covered[tuple(slice(*span) for span in spans)] += 1
        times = {*covered.reshape(-1).tolist()}
        cut = any(span != (0, size) for _, spans in parts for span, size in zip(spans, whole.shape, strict=True))
        repeated = "k_proj" in name or "v_proj" in name
        assert times == ({max(1, tp // 2) if repeated else 1} if cut else {tp}), name
        linear = name.rpartition(".")[2] not in ("cos", "sin") and "norm" not in name
        row_scale = ("o_proj" in name or "down_proj" in name) and len(whole.shape) < 2
        assert cut == (linear and not row_scale and bool(whole.shape)), f"{name} {whole.shape}"
