"""Golden dumps: legal graphs and launch plans of a toy are those that are committed; `make golden` rewrites them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.dumps import drafted_plan, graph_text, legal_graph

from llmc.runtime.plan.listing import plan_text

FOLDER = Path(__file__).resolve().parent
FORMATS = ("int4", "fp8")


def check(name: str, text: str, config: pytest.Config) -> None:
    path = FOLDER / name
    if config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} has changed: `make golden` rewrites it, `git diff` shows"


@pytest.mark.parametrize("quantize", FORMATS)
def test_the_cpu_graph_is_as_it_was(tmp_path: Path, quantize: str, pytestconfig: pytest.Config):
    check(f"cpu-{quantize}.graph.txt", graph_text(legal_graph(tmp_path, "cpu", quantize)), pytestconfig)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_graphs_of_ranks_are_as_they_were(tmp_path: Path, rank: int, pytestconfig: pytest.Config):
    """The second shard of the first stage, and the first of the second."""
    graph = legal_graph(tmp_path, "cpu", "fp8", rank=("tp2-pp2", rank))
    check(f"cpu-fp8-tp2-pp2.rank-{rank}.graph.txt", graph_text(graph), pytestconfig)


@pytest.mark.parametrize("quantize", FORMATS)
def test_the_gpu_graph_and_plan_are_as_they_were(tmp_path: Path, quantize: str, pytestconfig: pytest.Config):
    graph = legal_graph(tmp_path, "sm_90", quantize)
    check(f"sm_90-{quantize}.graph.txt", graph_text(graph), pytestconfig)
    check(f"sm_90-{quantize}.plan.txt", plan_text(drafted_plan(graph)), pytestconfig)


def test_the_plan_of_a_rank_is_as_it_was(tmp_path: Path, pytestconfig: pytest.Config):
    """The first shard of the second stage: it receives a part, gathers it, sums, and gathers the logits."""
    label = "sm_90-tp2-pp2.rank-2"
    plan = drafted_plan(legal_graph(tmp_path, "sm_90", "fp8", rank=("tp2-pp2", 2)), label=label)
    check("sm_90-fp8-tp2-pp2.rank-2.plan.txt", plan_text(plan), pytestconfig)


@pytest.mark.parametrize(("quantize", "fp8"), [("nvfp4", "fp8"), ("none", "none")])
def test_plans_with_fp8_activations_and_without_formats(
    tmp_path: Path, quantize: str, fp8: str, pytestconfig: pytest.Config
):
    plan = drafted_plan(legal_graph(tmp_path, "sm_90", quantize, fp8), fp8)
    check(f"sm_90-{quantize}-{fp8}.plan.txt", plan_text(plan), pytestconfig)


def test_a_plan_with_4_bit_activations_is_as_it_was(tmp_path: Path, pytestconfig: pytest.Config):
    plan = drafted_plan(legal_graph(tmp_path, "sm_100", "nvfp4", "nvfp4"), label="sm_100", sm=100)
    check("sm_100-nvfp4-nvfp4.plan.txt", plan_text(plan), pytestconfig)
