"""What a step on the CPU reads of a mixture's experts: those that some token chose, on average."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.samples.split_models import write_config

import llmc
from llmc.runtime.costs.graph import nodes_of_model
from llmc.runtime.costs.nodes import Mixture, Node, read_bytes
from llmc.runtime.engine_file.file import EngineFile

HIDDEN, EXPERTS, CHOSEN, WIDTH, LAYERS = 128, 6, 2, 64, 3
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": WIDTH,
    "mlp_only_layers": [],
}


def bytes_of(fmt: str, rows: int, columns: int) -> int:
    """Of float32 numbers; of codes of 4 bits, with a scale and a sum in float32 for each block of 32."""
    return rows * columns * 4 if fmt == "none" else rows * columns // 2 + rows * columns // 32 * 8


@pytest.fixture(params=["none", "int4"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, EngineFile]:
    """An engine of one process, and of two with expert parallelism."""
    folder = write_config(tmp_path / "c", **CONFIG)
    path = llmc.build(
        folder, tmp_path / "e.llmc", quantize=request.param, parallel=["tp1", "ep2"], max_context=64, random_weights=0
    )
    return request.param, EngineFile.open(path)


def graph_nodes(engine: EngineFile) -> tuple[Node, ...]:
    return nodes_of_model(engine.section(engine.manifest.profiles["cpu"].graph), what="a test")


def test_a_step_reads_the_chosen_experts_alone(built: tuple[str, EngineFile]):
    fmt, engine = built
    with engine:
        expert = bytes_of(fmt, 2 * WIDTH, HIDDEN) + bytes_of(fmt, HIDDEN, WIDTH)
        heads, kv = 8 * 32, 4 * 32
        attention = bytes_of(fmt, heads + 2 * kv, HIDDEN) + bytes_of(fmt, HIDDEN, heads)
        router = bytes_of("none", EXPERTS, HIDDEN)
        head = 509 * HIDDEN * 5 // 4 if fmt == "int4" else bytes_of("none", 509, HIDDEN)  # int8 beside int4
        rest = LAYERS * (attention + router) + head
        nodes = graph_nodes(engine)
        assert sum(isinstance(one, Mixture) for one in nodes) == (LAYERS if fmt == "int4" else 0)
        for tokens in (1, 2, 40):
            busy = EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** tokens)
            assert read_bytes(nodes, tokens=tokens) == pytest.approx(rest + LAYERS * busy * expert, abs=1)
        assert engine.profile("cpu").needs["step_bytes"] == rest + LAYERS * CHOSEN * expert
        ranks = [engine.profile(f"cpu-ep2.rank-{rank}").needs["step_bytes"] for rank in (0, 1)]
        assert sum(ranks) == pytest.approx(rest + LAYERS * (router + CHOSEN * expert), abs=8)
