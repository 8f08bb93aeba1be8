"""The oracle against the whole graph in one session: in blocks and row chunks it is the same numbers."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support import graphs
from support.engines import build_engine

from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.decoder.decoder import Decoder
from llmc.compiler.oracle import oracle as oracle_module
from llmc.compiler.oracle import reference as reference_module
from llmc.compiler.oracle.oracle import Oracle
from llmc.compiler.oracle.probe import inputs_for
from llmc.compiler.pipeline import lower
from llmc.compiler.targets import target_named
from llmc.compiler.targets.target import Precision
from llmc.passes import profile_passes, run_phase
from llmc.passes.graph.graph import Computed, Graph
from llmc.quantize import FORMATS
from llmc.recipes.recipe import QuantizeRule, Recipe
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.numbers import f32_to_bf16

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 32,
    "attention_bias": True,
    "initializer_range": 0.3,
    "dtype": "bfloat16",
}
IDS = [7, 299, 0, 7, 41, 150, 3, 3, 250]
RECIPES = {name: Recipe(default_format=name) for name in ("none", *FORMATS)} | {
    "mixed": Recipe(default_format="int4", rules=(QuantizeRule("lm_head", "int8"), QuantizeRule("*.o_proj", "fp8")))
}


@dataclass
class Model:
    """A graph after the model_passes phase, and the tensors an engine stores for it."""

    graph: Graph
    tensors: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        self.reads.append((name, start, stop))
        return self.tensors[name] if stop < 0 else self.tensors[name][start:stop]

    def logits(self, graph: Graph | None = None) -> np.ndarray:
        return Oracle(self.read).run(graph or self.graph, self.inputs)["logits"]


def _open(folder: Path, **config: object) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return open_source(folder, random_weights=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """Makes the model of a recipe; its quantized tensors come out of a real engine."""

    def make(recipe: str, **config: object) -> Model:
        folder = tmp_path_factory.mktemp("oracle")
        source = _open(folder, **config)
        graph = lower(source, RECIPES[recipe], 16)[0].graph
        path = build_engine(folder, folder / "a.llmc", RECIPES[recipe], random_weights=3).path
        with EngineFile.open(path) as engine:
            tensors = {name: engine.tensor(name).copy() for name in engine.tensors}
        rng = np.random.default_rng(4)
        for name in [name for name in tensors if name.endswith(".bias")]:  # zeros in random weights
            tensors[name] = f32_to_bf16(rng.normal(size=tensors[name].shape).astype(np.float32))
        for name, tensor in graph.canonical.items():
            if isinstance(tensor.origin, Computed):
                tensors[name] = tensor.origin.data
        return Model(graph, tensors, inputs_for(source.config.decoder, IDS, rows=len(IDS)))

    return make


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_the_whole_graph(
    model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, recipe: str, tied: bool
) -> None:
    made = model(recipe, tie_word_embeddings=tied)
    expected = graphs.run(made.graph, made.tensors, made.inputs)
    found = Oracle(made.read).run(made.graph, made.inputs)
    assert list(found) == list(expected) and np.isfinite(expected["logits"]).all()
    for name, value in expected.items():
        assert graphs.difference(found[name], value) < 1e-5, name
    monkeypatch.setattr(
        oracle_module, "LARGE", 9999
    )  # the embedding, the head and mlp weights; chunks of 78 or 39 rows
    assert graphs.difference(made.logits(), found["logits"]) < 1e-5


@pytest.mark.parametrize(("recipe", "tied"), [("none", False), ("nvfp4", True), ("mixed", True), ("fp8", False)])
def test_it_runs_every_stage(model: Callable[..., Model], recipe: str, tied: bool) -> None:
    """Merged weights are decoded from joined components; a legal graph runs as it is."""
    made = model(recipe, tie_word_embeddings=tied)
    expected = made.logits()
    graph = made.graph.copy()
    run_phase(profile_passes(), graph)
    assert graph.text() != made.graph.text()
    assert graphs.difference(made.logits(graph), expected) < 1e-5
    run_phase(target_named("cpu").legalize(Precision()), graph)
    assert graphs.difference(made.logits(graph), expected) < 1e-2


def test_equal_layers_share_a_session(model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    made = {layers: model("int8", num_hidden_layers=layers) for layers in (2, 5)}
    created = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kw: created.append(1) or real(*args, **kw))
    counts = []
    for one in made.values():
        created.clear()
        one.logits()
        counts.append(len(created))
    assert counts == [4, 4], "embedding, a layer, the last layer (only wanted rows leave it), head"


def test_a_large_embedding_is_read_by_rows(model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("none")
    monkeypatch.setattr(oracle_module, "LARGE", 30_000)
    made.logits()
    rows = [(start, stop) for name, start, stop in made.reads if name == "model.embed_tokens.weight"]
    assert rows == [(token, token + 1) for token in sorted(set(IDS))]
    head = [(start, stop) for name, start, stop in made.reads if name == "lm_head.weight"]
    assert head == [(0, 234), (234, 300)]


def test_each_weight_is_read_once(model: Callable[..., Model]) -> None:
    made = model("nvfp4")
    made.logits()
    names = [name for name, _, _ in made.reads]
    # rope tables are the only tensors that all layers read
    assert {name for name in names if names.count(name) > 1} == {"rope.cos", "rope.sin"}
    assert set(names) == set(made.graph.canonical)


def test_the_reference_keeps_few_graphs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each text of an evaluation may end in a window of its own length."""
    made: list[weakref.ref[Graph]] = []
    assemble = reference_module.build

    def counted(*arguments: Any) -> Decoder:
        decoder = assemble(*arguments)
        made.append(weakref.ref(decoder.graph))
        return decoder

    monkeypatch.setattr(reference_module, "build", counted)
    logits = reference_module.reference_logits(_open(tmp_path))
    whole = logits(IDS)
    for length in range(1, 6):
        np.testing.assert_allclose(logits(IDS[:length]), whole[:length], rtol=0, atol=1e-4)
        logits(IDS)
    gc.collect()
    assert len(made) == 6, "that of whole windows stays"
    assert sum(graph() is not None for graph in made) <= 2
