"""Every pass proves itself: its examples fire, keep the numbers, are idempotent, and refuse for the stated reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import graphs

from llmc.compiler.targets.cpu.legalize import RULES
from llmc.compiler.targets.cuda.fp4 import RULES as ACTIVATION_RULES
from llmc.compiler.targets.cuda.legalize import PASSES
from llmc.passes import model_passes, profile_passes
from llmc.passes.graph.graph import GATED, MODULE, ROLE, Canonical, Copied, Graph
from llmc.passes.graph.verify import LOGICAL, BrokenGraph, verify
from llmc.passes.merge_linears import MergeLinears
from llmc.passes.quantize_weights import QuantizeWeights
from llmc.passes.rewrite.dump import Dump
from llmc.passes.rewrite.manager import PassCrash, Phase, run_phase
from llmc.passes.rewrite.rule import Outcome, Pass
from llmc.quantize import FORMATS
from llmc.runtime.cpu.onnx_scan import CPU_OPERATORS
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.errors import Unsupported

ALL = {
    item.name: item
    for item in (
        *model_passes(lambda _: "int8").passes,
        *profile_passes().passes,
        *RULES,
        *ACTIVATION_RULES.values(),
        *PASSES,
    )
}
FIRES = [(item, text) for item in ALL.values() for text in item.fires]
REFUSES = [(item, reason, text) for item in ALL.values() for reason, text in item.refuses.items()]
EVERYTHING = {*LOGICAL, *CPU_OPERATORS, ("", "Softmax"), ("", "Relu")}


def test_every_pass_has_an_example() -> None:
    without = [name for name, item in ALL.items() if not item.fires]
    assert without == ["RefuseLatents", "RefuseSinks", "RefuseOthers"]  # they rewrite nothing: tested below


@pytest.mark.parametrize(("item", "text"), FIRES, ids=lambda value: getattr(value, "name", None))
def test_fires_and_keeps_numbers(item: Pass, text: str) -> None:
    example = graphs.parse(text)
    before = graphs.run(example.graph, example.tensors, example.inputs)
    assert item.run(example.graph).fired
    example.graph.body.sort()
    verify(example.graph, EVERYTHING)
    after = graphs.run(example.graph, example.tensors, example.inputs)
    assert list(after) == list(before)
    for name, expected in before.items():
        assert graphs.difference(after[name], expected) <= item.tolerance, name
    assert item.run(example.graph).fired == 0, "a second run finds nothing left to do"


@pytest.mark.parametrize("item", ALL.values(), ids=lambda item: item.name)
def test_a_pass_without_docstring_has_its_name_as_reason(item: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under python -OO, where every build failed."""
    assert len(item.reason) > len(item.name)
    monkeypatch.setattr(type(item), "__doc__", None)
    assert item.reason == item.name


@pytest.mark.parametrize(("item", "reason", "text"), REFUSES, ids=lambda value: getattr(value, "name", None))
def test_refuses_with_its_reason(item: Pass, reason: str, text: str) -> None:
    example = graphs.parse(text)
    before = example.graph.text()
    outcome = item.run(example.graph)
    assert outcome.fired == 0
    assert example.graph.text() == before
    if reason:
        assert outcome.miss is not None and outcome.miss.reason == reason


@pytest.mark.parametrize("name", FORMATS)
def test_quantize_weights_follows_the_format(name: str) -> None:
    text = (
        "(int64[2,3] ids, float[384,128] T, float[256,128] W) => (float[2,3,256] y, float[2,3,384] h) "
        "{ e = llmc.Embedding:f32(ids, T) y = llmc.Linear:f32(e, W) h = llmc.Linear:f32(e, T) }"
    )
    example = graphs.parse(text)
    for node in example.graph.nodes:
        node.metadata_props[MODULE] = str(node.outputs[0].name)
    before = graphs.run(example.graph, example.tensors, example.inputs)
    reports = run_phase(Phase("model", (model_passes(lambda _: name).passes[-1],), LOGICAL), example.graph)
    assert reports[0].fired == 2
    embedding = next(node for node in example.graph.nodes if node.op_type == "Embedding")
    assert embedding.overload == name.replace("-", "_"), "a tied embedding follows the head"
    tensors = graphs.quantized(example.graph, example.tensors)
    after = graphs.run(example.graph, example.tensors, example.inputs)
    dense = FORMATS[name].dequantize(
        {s: tensors[f"T.{s}" if s != "weight" else "weight"] for s in ()} or _parts(tensors, name)
    )
    rows = example.inputs["ids"]
    assert graphs.difference(after["h"], dense[rows] @ dense.T) < 1e-5
    assert graphs.difference(after["y"], before["y"]) < 0.5


def _parts(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    stem = "T" if "T" in tensors else "Tweight"
    return {c.name: tensors[f"{stem.removesuffix('weight')}{c.name}"] for c in FORMATS[name].components(384, 128)}


def test_a_module_that_the_recipe_leaves_alone_is_not_quantized() -> None:
    text = (
        "(float[2,64] x, float[4,64] W, float[4,64] V) => (float[2,4] y, float[2,4] z) "
        "{ y = llmc.Linear:f32(x, W) z = llmc.Linear:f32(x, V) }"
    )
    example = graphs.parse(text)
    for node in example.graph.nodes:
        node.metadata_props[MODULE] = f"module.{node.outputs[0].name}"
    outcome = QuantizeWeights(lambda module: "int8" if module == "module.y" else "none").run(example.graph)
    assert outcome.fired == 1
    assert outcome.miss is not None and outcome.miss.reason == "module.z stays as it is"
    assert {node.metadata_props[MODULE]: node.overload for node in example.graph.nodes} == {
        "module.y": "int8",
        "module.z": "f32",
    }


def test_gate_and_up_keep_their_role_until_a_target_that_takes_them_apart() -> None:
    text = (
        "(float[2,3,32] x, int64[1] rows, float[32] N, float[64,32] G, float[64,32] U) => (float[1,64] y) "
        "{ n = RMSNormalization<axis=-1>(x, N) g = llmc.Linear:f32(n, G) u = llmc.Linear:f32(n, U) "
        "s = Swish(g) m = Mul(s, u) y = llmc.SelectRows(m, rows) }"
    )
    graph = graphs.parse(text).graph
    for node in graph.nodes:
        if node.op_type == "Linear":
            node.metadata_props[ROLE] = GATED
    run_phase(model_passes(lambda _: "int8"), graph)
    linears = [node for node in graph.nodes if node.op_type == "Linear"]
    assert [(node.overload, node.metadata_props[ROLE]) for node in linears] == [("int8", GATED)] * 2
    apart = MergeLinears(gated=False).run(graph)
    assert apart.miss is not None and apart.miss.reason == "the target keeps gate and up apart"
    assert (apart.fired, MergeLinears().run(graph).fired) == (0, 1)


def test_linears_stored_in_different_types_merge_as_float32() -> None:
    example = graphs.parse(profile_passes().passes[0].fires[0])
    before = graphs.run(example.graph, example.tensors, example.inputs)
    for name, dtype in (("Q", np.float16), ("K", np.float32)):
        example.tensors[name] = example.tensors[name].astype(dtype)
    leaf = Stored("Q", "F16", (8, 4))
    example.graph.weights["Q"] = leaf
    example.graph.canonical["Q"] = Canonical("Q", "F16", (8, 4), Copied("Q"), "Q")
    assert profile_passes().passes[0].run(example.graph).fired
    assert example.graph.weights["Q+K"].dtype == "F32"
    after = graphs.run(example.graph, example.tensors, example.inputs)
    assert all(graphs.difference(after[name], before[name]) < 1e-2 for name in before)


def test_a_weight_the_format_cannot_hold_is_refused_by_name() -> None:
    example = graphs.parse("(float[2,48] x, float[4,48] W) => (float[2,4] y) { y = llmc.Linear:f32(x, W) }")
    with pytest.raises(Unsupported, match=re.escape("cannot store W as int4")) as caught:
        model_passes(lambda _: "int4").passes[-1].run(example.graph)
    assert "K = 48 is not a multiple of the block of 32" in str(caught.value)
    assert "`W: none`" in str(caught.value)


def test_what_no_gpu_launch_computes_is_refused_by_name() -> None:
    text = (
        ALL["FuseRopeAttention"].fires[0].replace("(qr, kr, v", "(qr, kr, k"),
        "(float[2,3,8] a) => (float[2,3,8] y) { y = Swish(a) }",
    )
    for example in map(graphs.parse, text):
        with pytest.raises(
            Unsupported, match=r"cannot compute (CachedAttention|Swish) \(y\) on a GPU\n  found: .* one linear"
        ):
            PASSES[-1].run(example.graph)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("(float[2,3,8] a, float[2,3,8] b) => (float[2,3,8] y) { s = Sigmoid(a) y = Mul(b, s) }", "Sigmoid (s)"),
        ("(float[2,3,1] a) => (float[2,3,1] y) { s = Sigmoid(a) y = Relu(s) }", "Sigmoid (s)"),
        ("(float[2,3,8] a, float[2,3,8] b) => (float[2,3,8] y) { y = Mul(a, b) }", "Mul (y)"),
        ("(float[2,3,1] a, float[2,3,8] b) => (float[2,3,8] y) { s = Sigmoid(a) y = Mul(b, s) }", ""),
    ],
)
def test_a_gpu_multiplies_by_what_is_stored_or_by_a_gate_of_rows(text: str, refused: str) -> None:
    graph = graphs.parse(text).graph
    if not refused:
        PASSES[-1].run(graph)
        return
    with pytest.raises(Unsupported, match=re.escape(f"cannot compute {refused} on a GPU")) as caught:
        PASSES[-1].run(graph)
    assert "a product of two activations" in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("AttentionToStandard", "CachedAttention (y) with sinks on the CPU\n  found: a head size of 20, which is no"),
        ("SharedToStandard", "SharedAttention (y) with sinks on the CPU\n  found: attention to the cache of another"),
    ],
)
def test_sinks_that_no_kernel_of_the_cpu_takes_are_refused_by_name(rule: str, found: str) -> None:
    example = graphs.parse(ALL[rule].refuses["there are sinks"])
    with pytest.raises(Unsupported, match=re.escape(f"cannot compute {found}")) as caught:
        run_phase(Phase("cpu", RULES, CPU_OPERATORS, during=LOGICAL), example.graph)
    assert "--target sm_90" in caught.value.fix


def test_rows_of_latents_that_no_kernel_of_the_cpu_takes_are_refused_by_name() -> None:
    example = graphs.parse(ALL["LatentToGroupQuery"].refuses["a cached row is no multiple of 8"])
    with pytest.raises(Unsupported) as caught:
        run_phase(Phase("cpu", RULES, CPU_OPERATORS, during=LOGICAL), example.graph)
    assert str(caught.value) == (
        "cannot compute LatentAttention (y) on the CPU\n  found: cached rows of 12 numbers (kv_lora_rank + "
        "qk_rope_head_dim), which is no multiple of 8\n  try: a model whose rows are; those that are published have "
        "320 or 576"
    )


def _dump_of(graph: Graph, folder: Path) -> Dump:
    dump = Dump(folder, {}, "0")
    dump.begin(graph)
    return dump


class _Breaks(Pass):
    """Leaves a node of a later phase behind."""

    def run(self, graph: Graph) -> Outcome:
        node = next(iter(graph.nodes))
        node.op_type = "Softmax"
        return Outcome(fired=1)


class _Crashes(Pass):
    """Fails."""

    def run(self, graph: Graph) -> Outcome:
        raise KeyError("lost")


def test_a_broken_graph_stops_at_the_pass_that_broke_it(tmp_path: Path) -> None:
    example = graphs.parse("(float[2,3] x) => (float[2,3] y) { y = Swish(x) }")
    dump = _dump_of(example.graph, tmp_path)
    with pytest.raises(PassCrash, match="pass _Breaks of phase test failed: operators that do not belong") as caught:
        run_phase(Phase("test", (_Breaks(),), LOGICAL), example.graph, dump)
    assert isinstance(caught.value.__cause__, BrokenGraph)
    reproducer = tmp_path / "crash-test-_Breaks.txt"
    assert str(reproducer) in str(caught.value)
    onnx.parser.parse_graph(reproducer.read_text())


def test_a_crash_names_the_passes_before_it() -> None:
    example = graphs.parse("(float[2,3] x) => (float[2,3] y) { y = Swish(x) }")
    simplify = model_passes(lambda _: "none").passes[0]
    with pytest.raises(PassCrash, match="pass _Crashes of phase test failed: 'lost'; passes before it: Simplify; run"):
        run_phase(Phase("test", (simplify, _Crashes()), LOGICAL), example.graph)


def test_dump_writes_only_what_changed(tmp_path: Path) -> None:
    text = "(float[2,3,4] x, float[4] W) => (float[2,3,4] y) { y = RMSNormalization<axis=-1>(x, W) }"
    graph = graphs.parse(text).graph
    run_phase(profile_passes(), graph, _dump_of(graph, tmp_path))
    assert list(tmp_path.iterdir()) == []
    text = (
        "(float[2,3,4] x, float[2,3,4] r, float[4] W) => (float[2,3,4] y) "
        "{ s = Add(x, r) y = RMSNormalization<axis=-1>(s, W) }"
    )
    graph = graphs.parse(text).graph
    run_phase(profile_passes(), graph, _dump_of(graph, tmp_path), profile="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["01-cpu-profile-FuseAddNorm.txt"]
    assert "AddRMSNorm" in (tmp_path / "01-cpu-profile-FuseAddNorm.txt").read_text()


@pytest.mark.parametrize(
    ("rule", "text", "breakage"),
    [
        (
            "every llmc operator has a definition",
            "{ y = llmc.Linear:f32(x, W) }",
            lambda n, g: setattr(n, "overload", "fp3"),
        ),
        ("every node has a block", "{ y = llmc.Linear:f32(x, W) }", lambda n, g: n.metadata_props.clear()),
        ("every weight expression", "{ y = llmc.Linear:f32(x, W) }", lambda n, g: g.canonical.clear()),
        ("names are unique", "{ y = llmc.Linear:f32(x, W) }", lambda n, g: setattr(g.body.inputs[0], "name", "W")),
    ],
)
def test_verify_finds(rule: str, text: str, breakage) -> None:  # type: ignore[no-untyped-def]
    graph = graphs.parse(f"(float[2,4] x, float[8,4] W) => (float[2,8] y) {text}").graph
    verify(graph, LOGICAL)
    breakage(next(iter(graph.nodes)), graph)
    with pytest.raises(BrokenGraph, match=rule):
        verify(graph, LOGICAL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_is_nan_after_its_rounding(bad: float) -> None:
    example = graphs.parse("(float[3,64] x) => (float[3,64] y) { y = llmc.QuantizeActivations(x) }")
    x = example.inputs["x"]
    before = graphs.run(example.graph, example.tensors, {"x": x})["y"]
    after = graphs.run(example.graph, example.tensors, {"x": np.where(np.arange(192).reshape(3, 64) == 70, bad, x)})[
        "y"
    ]
    assert np.isnan(after[1, 6])
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.isfinite(before).all()
