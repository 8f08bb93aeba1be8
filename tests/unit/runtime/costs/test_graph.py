"""The nodes that are read from an engine's ONNX bytes, against those that the onnx package reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import PicoEngine, build_engine, small_checkpoint

from llmc.recipes.recipe import Recipe
from llmc.runtime.costs.graph import nodes_of_model
from llmc.runtime.costs.nodes import Attention, Elements, Node, Product
from llmc.runtime.costs.onnx_bytes import F32, Op, Typed, model
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import EngineError


def read(path: Path) -> tuple[tuple[Node, ...], onnx.ModelProto, int]:
    """The nodes of the profile cpu, its model, and what the engine says its steps read."""
    with EngineFile.open(path) as engine:
        facts = engine.manifest.profiles["cpu"]
        data = engine.section(facts.graph)
        return nodes_of_model(data, what="a test"), onnx.load_from_string(data), facts.needs["step_bytes"]


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_products_have_the_bytes_that_the_engine_says(pico_engine: PicoEngine, quantize: str):
    nodes, proto, step_bytes = read(pico_engine(quantize))
    products = [one for one in nodes if isinstance(one, Product)]
    assert len(nodes) == len(proto.graph.node)
    assert sum(one.bytes for one in products) == step_bytes
    assert Counter((one.rows, one.columns) for one in products) == {
        (512, 256): 8,  # q, k and v together
        (256, 256): 8,
        (768, 256): 16,
        (256, 768): 8,
        (4096, 256): 1,
    }
    # the last layer's o, gate, up and down, and the head, compute wanted rows only
    assert [one.per for one in products[-5:]] == ["row"] * 5
    assert {one.per for one in products[:-5]} == {"token"}


def test_attention_and_elements_have_their_sizes(pico_engine: PicoEngine):
    nodes, proto, _ = read(pico_engine("int8"))
    assert [one for one in nodes if isinstance(one, Attention)] == [Attention(4, 2, 64)] * 8
    elements = [one for one in nodes if isinstance(one, Elements)]
    norms = [one for one in elements if one.kind == "norm"]
    assert {one.width for one in norms} == {256} and len(norms) == 17
    assert [one.width for one in elements if one.kind == "activation"] == [768] * 8
    assert [(one.op, one.width, one.per) for one in elements[:1]] == [("GatherBlockQuantized", 256, "token")]
    assert {one.width for one in elements if one.op in ("Shape", "Cast", "ReduceMax", "Sub", "Constant")} == {0}
    assert Counter(one.op for one in elements).items() <= Counter(one.op_type for one in proto.graph.node).items()


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}, "GroupQueryAttention"),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8}, "window"),
        ({"head_dim": 20}, "Attention"),
    ],
    ids=["head norms", "window", "standard attention"],
)
def test_other_forms_of_attention_are_read(tmp_path: Path, config: dict[str, object], attention: str):
    checkpoint = small_checkpoint(tmp_path / "model", tokenizer=False, **config)
    report = build_engine(checkpoint, tmp_path / "e.llmc", Recipe(max_context=64))
    nodes, _, step_bytes = read(report.path)
    assert sum(one.bytes for one in nodes if isinstance(one, Product)) == step_bytes
    found = [one for one in nodes if isinstance(one, Attention)]
    assert found and all(one.head_dim == config.get("head_dim", one.head_dim) for one in found)
    assert {one.window for one in found} == ({8} if attention == "window" else {None})


def test_latent_attention_has_products_of_heads_and_rows_that_all_heads_read(tmp_path: Path):
    """4 heads of 16 + 8 and values of 12, over rows of 24 + 8."""
    config = {
        **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_attention_heads": 4},
        **{"num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 24, "q_lora_rank": 32, "qk_nope_head_dim": 16},
        **{"qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 9, "num_hidden_layers": 2},
    }
    checkpoint = small_checkpoint(tmp_path / "model", tokenizer=False, **config)
    nodes, _, step_bytes = read(build_engine(checkpoint, tmp_path / "e.llmc", Recipe(max_context=64)).path)
    assert [one for one in nodes if isinstance(one, Attention)] == [Attention(4, 1, 32, values_are_keys=True)] * 2
    products = [one for one in nodes if isinstance(one, Product)]
    assert sum(one.bytes for one in products) == step_bytes
    sizes = Counter((one.rows, one.columns) for one in products)
    assert sizes[4 * 24, 16] == 2, "queries meet the keys of each head"
    assert sizes[4 * 12, 24] == 2, "what is mixed becomes values"


def test_a_product_without_a_known_weight_is_refused():
    data = model([Op("", "MatMul", ["x", "x"], ["y"])], [Typed("x", F32, ["B", "S", 8])], [])
    with pytest.raises(EngineError, match="expected a graph that this llmc can price in a test"):
        nodes_of_model(data, what="a test")


@given(st.binary(max_size=200))
def test_damaged_bytes_are_refused_or_read(data: bytes):
    try:
        nodes_of_model(data, what="a test")
    except EngineError as error:
        assert "a test" in str(error)
