"""Mixtures of experts over ranks: joined graphs compute what the whole does, and shards have what they should."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import relative
from support.samples.split_models import Model, compare

from llmc.compiler.families import FAMILIES
from llmc.compiler.families.reading import ConfigReader
from llmc.compiler.families.spec import Experts, LayerSpec, Linear, Spelling, Stack
from llmc.passes.graph.experts import Mixture
from llmc.passes.graph.graph import BLOCK, Graph, attribute, dims
from llmc.quantize import FORMATS
from llmc.runtime.dtypes import LIMITED
from llmc.runtime.engine_file.bind import Slice, ToF32, stored
from llmc.runtime.engine_file.split import Split
from llmc.runtime.errors import Unsupported

NAME = "Qwen3MoeForCausalLM"
CONFIG: dict[str, Any] = {
    "architectures": [NAME],
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "intermediate_size": 1024,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
}
SPLITS = ("tp2", "ep2", "ep4", "tp2-ep2", "pp2", "tp2-ep2-pp2")
"""4 groups of 6 experts are not equal: 2, 2, 1 and 1."""
BOUND = 4e-5
"""max|a-b| / max|b|: the oracle decodes the same codes on all ranks in float32, so only the order of sums differs."""
PLAIN = FAMILIES[NAME].layer


def biased(stack: Stack) -> Stack:
    return replace(stack, bias=True, spellings=(Spelling((stack.module,), biases=(f"{stack.module}_bias",)),))


def with_all(config: ConfigReader, index: int) -> LayerSpec:
    """Layers of Qwen 3 MoE with a shared expert that has a gate, biases, and the activation of GPT-OSS."""
    layer = PLAIN(config, index)
    if not isinstance(layer.mlp, Experts):
        return layer
    mlp = config.mlp()
    gate, up, down = (
        replace(one, module=one.module.replace("mlp.", "mlp.shared.")) for one in (mlp.gate, mlp.up, mlp.down)
    )
    experts = replace(
        layer.mlp,
        gate_up=biased(layer.mlp.gate_up),
        down=biased(layer.mlp.down),
        activation=LIMITED,
        alpha=1.7,
        limit=1.5,
        shared=replace(mlp, gate=gate, up=up, down=down),
        shared_gate=Linear("mlp.shared_gate", 1, config.hidden_size, kept=True),
    )
    return replace(layer, mlp=experts)


@pytest.fixture(params=["plain", "with all"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    if request.param == "with all":
        monkeypatch.setitem(FAMILIES, NAME, replace(FAMILIES[NAME], layer=with_all))
    return Model.of(tmp_path, **CONFIG)


def close(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    assert relative(found, expected) <= BOUND, name


def test_ranks_of_experts_compute_together_what_the_whole_does(model: Model):
    compare(model, "none", SPLITS, close)


@pytest.mark.parametrize(
    "fmt", ["int4", *(pytest.param(one, marks=pytest.mark.soak) for one in FORMATS if one != "int4")]
)
def test_ranks_of_quantized_experts_do_so_too(model: Model, fmt: str):
    compare(model, fmt, ("ep4", "tp2-ep2-pp2"), close)


def mixtures(graph: Graph) -> list[Any]:
    return [node for node in graph.nodes if node.op_type == "MoE"]


@pytest.mark.parametrize("name", ["tp2", "ep4", "tp2-ep2"])
@pytest.mark.parametrize("fmt", ["none", "nvfp4"])
def test_shards_have_each_element_of_each_expert_once(model: Model, name: str, fmt: str):
    """Components of experts too; a number for a whole weight is that of all shards of its group."""
    split = Split.parse(name)
    graphs, whole = model.ranks(split, fmt), model.decoder(fmt).graph
    for number, node in enumerate(mixtures(whole)):
        starts = []
        owned = {str(value.name): np.zeros([int(size) for size in dims(value)], int) for value in node.inputs[3:]}
        for graph in graphs:
            own = mixtures(graph)[number]
            assert Mixture.of(own.overload).part == (split.ep > 1)
            starts.append(attribute(own, "start") if split.ep > 1 else 0)
            for value in own.inputs[3:]:
                expr = graph.weights[str(value.name)]
                if isinstance(expr, ToF32):  # biases of down, which the first shard of a group adds
                    assert expr.factor == (0.0 if split.group(len(starts) - 1)[1] else 1.0)
                    continue
                (leaf,) = stored(expr)
                index = [slice(0, size) for size in leaf.shape]
                while isinstance(expr, Slice):
                    index[expr.axis] = slice(expr.start, expr.stop)
                    expr = expr.of
                owned[str(value.name)][tuple(index)] += 1
        groups = {"tp2": [0, 0], "ep4": [0, 2, 4, 5], "tp2-ep2": [0, 0, 3, 3]}[name]
        assert starts == groups
        for value, times in owned.items():
            if not times.any():
                assert value.endswith("down_proj.bias") and split.tp > 1
                continue
            once = split.tp == 1 or times.ndim == 3 or ("gate_up" in value and times.ndim == 2)
            assert {*times.reshape(-1).tolist()} == {1 if once else split.tp}, value


def test_one_sum_over_shards_follows_experts_and_a_shared_expert(model: Model):
    """Layers 0 and 2 have experts; 1 has none. Each layer has two sums, of attention and of the rest."""
    for graph in model.ranks(Split(2, ep=2), "none"):
        sums = [node for node in graph.nodes if node.op_type == "AllReduce"]
        blocks = Counter(node.metadata_props[BLOCK] for node in sums)
        assert blocks == {"embed": 1, "layer.0": 2, "layer.1": 2, "layer.2": 2}


REFUSED = {
    ("ep8", "none"): ("ep8 for 6 experts in model.layers.0", "tp2-ep4"),
    ("tp3-ep2", "none"): (
        "tp3-ep2 for experts with an intermediate size of 256 in model.layers.0",
        "tp2-ep2 or tp4-ep2",
    ),
    ("ep3", "none"): ("ep3 for 8 heads and 4 key and value heads in model.layers.0", "ep2 or ep4"),
    ("tp4-ep2", "int4-g128"): (
        "tp4-ep2 for 256 columns in blocks of 128 (int4-g128) in model.layers.0.mlp.experts.down_proj",
        "tp2-ep4",
    ),
    ("ep2-pp9", "none"): ("pp9, more than the model's layers (3)", "ep2-pp3"),
}


@pytest.mark.parametrize(("name", "fmt"), REFUSED)
def test_what_cannot_be_split_is_refused_with_what_can(tmp_path: Path, name: str, fmt: str):
    with pytest.raises(Unsupported) as refused:
        Model.of(tmp_path, **CONFIG).place(Split.parse(name), fmt)
    found, fix = REFUSED[name, fmt]
    assert str(refused.value) == f"cannot split this model as {name}\n  found: {found}\n  try: {fix}"


def test_stages_count_all_experts(tmp_path: Path):
    """Layer 1, which has no experts, is the smallest by far, though it computes as much for a token as the others."""
    model = Model.of(
        tmp_path,
        **{**CONFIG, "num_hidden_layers": 4, "num_experts": 32, "mlp_only_layers": [0, 1, 2], "vocab_size": 64},
    )
    assert model.place(Split(pp=2), "none").stages == ((0, 3), (3, 4))
