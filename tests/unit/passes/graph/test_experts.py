"""`Route` and `MoE`: the definitions against numpy, for every router, format, activation and flag; and the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import difference, run_operator

from llmc.compiler.oracle.experts import mixture_result
from llmc.passes.graph.experts import ROUTERS, Mixture, route_overload
from llmc.passes.graph.graph import Canonical, Copied, Graph
from llmc.passes.graph.ops import DOMAIN
from llmc.passes.rewrite.inline import inlined
from llmc.quantize import FORMATS
from llmc.runtime.dtypes import CHOSEN, LIMITED, SIGMOID, SOFTMAX
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.numbers import RAW_DTYPE

E, K = 6, 2
INNER = HIDDEN = 128
"""Sizes that blocks of 128 fit."""
Arrays = Mapping[str, np.ndarray]


def routed(
    logits: np.ndarray,
    kind: str,
    *,
    k: int,
    bias: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    normed: bool = False,
    factor: float = 1.0,
    least: float = 1e-20,
    groups: int = 1,
    kept: int = 1,
    best: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The reference for one token in float64, as families.md says it."""
    x = logits.astype(np.float64)
    softmax = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    scores = {SOFTMAX: softmax, SIGMOID: 1 / (1 + np.exp(-x)), CHOSEN: x}[kind]
    rank = scores + (0 if bias is None else bias)
    if groups > 1:
        parts = rank.reshape(groups, -1)
        sums = np.sort(parts, axis=1)[:, -best:].sum(axis=1)
        shut = np.argsort(-sums)[kept:]
        parts[shut] = -np.inf
        rank = parts.reshape(-1)
    experts = np.argsort(-rank, kind="stable")[:k]
    weights = scores[experts]
    if kind == CHOSEN:
        weights = np.exp(weights - weights.max()) / np.exp(weights - weights.max()).sum()
    if normed:
        weights = weights / max(weights.sum(), least)
    return experts, weights * factor * (1 if scales is None else scales[experts])


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(ROUTERS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_router_chooses_and_weighs_as_its_formula_says(
    seed: int, kind: str, biased: bool, normed: bool, groups: tuple[int, int, int], k: int, scaled: bool
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(2, 3, 12)).astype(np.float32)
    bias, scales = (random.normal(size=12).astype(np.float32) if has else None for has in (biased, scaled))
    normed = normed and kind != CHOSEN
    count, kept, best = groups
    grouped = {"groups": count, "kept": kept, "best": best} if count > 1 else {}
    overload = route_overload(kind, biased=biased, grouped=count > 1, normed=normed, scaled=scaled)
    inputs = {"logits": logits, "bias": bias, "scales": scales}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    sums = {"least": 0.5} if normed else {}
    experts, weights = run_operator("Route", overload, inputs, ["e", "w"], k=k, factor=1.5, **sums, **grouped)
    assert experts.dtype == np.int64 and experts.shape == weights.shape == (2, 3, k)
    for at in np.ndindex(2, 3):
        expected = routed(logits[at], kind, k=k, bias=bias, scales=scales, normed=normed, factor=1.5, **sums, **grouped)
        assert experts[at].tolist() == expected[0].tolist()
        np.testing.assert_allclose(weights[at], expected[1], rtol=1e-5, atol=1e-6)


def test_equal_scores_of_different_logits_are_ranked_by_the_logits() -> None:
    """sigmoid(40) and sigmoid(50) are both 1 in float32."""
    (experts, weights) = run_operator(
        "Route", SIGMOID, {"logits": np.array([[40.0, 50.0, -1.0]], np.float32)}, ["e", "w"], k=1, factor=1.0
    )
    assert experts.tolist() == [[1]] and weights.tolist() == [[1.0]]


def test_no_sum_below_the_least_divides() -> None:
    logits = np.array([[-200.0, -201.0, -202.0]], np.float32)
    overload = route_overload(SIGMOID, normed=True)
    _, weights = run_operator("Route", overload, {"logits": logits}, ["e", "w"], k=2, factor=1.0, least=1e-12)
    assert (weights == 0).all()


MIXTURES = [
    *(Mixture(name, name, "silu") for name in ("none", *FORMATS)),
    Mixture("int4", "int8", "silu"),
    *(Mixture("none", "none", name) for name in ("gelu", "gelu_pytorch_tanh", "relu", LIMITED)),
    Mixture("mxfp4", "mxfp4", LIMITED, bias=True),
    Mixture("nvfp4", "none", "silu", input=True),
    Mixture("int4", "int4", "silu", bias=True, part=True),
]


def stacks(mixture: Mixture, random: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of a MoE after its first three, raw, and the dense weights that they stand for."""
    inputs, dense = {}, {}
    for stem, fmt, shape in (("up", mixture.up, (2 * INNER, HIDDEN)), ("down", mixture.down, (HIDDEN, INNER))):
        whole = torch.from_numpy(random.normal(size=(E, *shape)).astype(np.float32))
        if fmt == "none":
            inputs[f"{stem}_weight"] = dense[stem] = whole.numpy()
        else:
            parts = [FORMATS[fmt].quantize(one) for one in whole]
            inputs |= {f"{stem}_{one.suffix}": np.stack([p[one.suffix] for p in parts]) for one in FORMATS[fmt].layouts}
            dense[stem] = np.stack([FORMATS[fmt].dequantize(one) for one in parts])
        if mixture.bias:
            inputs[f"{stem}_bias"] = dense[f"{stem}_bias"] = random.normal(size=(E, shape[0])).astype(np.float32)
    return inputs, dense


def summed(x: np.ndarray, experts: np.ndarray, weights: np.ndarray, mixture: Mixture, dense: Arrays) -> np.ndarray:
    """The reference, one token and one expert at a time; experts 1 to 3 are there if it is a part."""
    y = np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        for expert, weight in zip(experts[at], weights[at], strict=True):
            if mixture.part and not 1 <= expert < 4:
                continue
            pairs = dense["up"][expert].astype(np.float64) @ (x[at] * (weight if mixture.input else 1))
            pairs = pairs + (dense["up_bias"][expert] if mixture.bias else 0)
            gate, up = pairs[0::2], pairs[1::2]
            if mixture.activation == LIMITED:
                gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
                acted = gate / (1 + np.exp(-1.702 * gate))
            else:
                acted = ACTS[mixture.activation](torch.from_numpy(gate)).numpy()
            made = dense["down"][expert] @ (acted * up) + (dense["down_bias"][expert] if mixture.bias else 0)
            y[at] += made * (1 if mixture.input else weight)
    return y


ACTS: dict[str, Any] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.overload)
def test_a_mixture_is_the_sum_of_its_experts(mixture: Mixture) -> None:
    """The definition in ONNX Runtime, and the oracle, which decodes one expert at a time."""
    random = np.random.default_rng(5)
    raw, dense = stacks(mixture, random)
    x = random.normal(size=(2, 3, HIDDEN)).astype(np.float32)
    experts = np.stack([random.permutation(E)[:K] for _ in range(6)]).reshape(2, 3, K).astype(np.int64)
    weights = random.random((2, 3, K)).astype(np.float32)
    here = slice(1, 4) if mixture.part else slice(None)
    given_raw = {name: np.ascontiguousarray(array[here]) for name, array in raw.items()}
    attributes: dict[str, object] = {"alpha": 1.702, "limit": 7.0} if mixture.activation == LIMITED else {}
    attributes |= {"start": 1} if mixture.part else {}
    expected = summed(x, experts, weights, mixture, dense)
    widened = {
        name: (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
        for name, array in given_raw.items()
    }
    inputs = {"x": x, "experts": experts, "weights": weights, **widened}
    (found,) = run_operator("MoE", mixture.overload, inputs, ["y"], **attributes)
    assert difference(found, expected) < 1e-5
    assert difference(by_oracle(mixture, x, experts, weights, given_raw, attributes), expected) < 1e-5


def by_oracle(
    mixture: Mixture,
    x: np.ndarray,
    experts: np.ndarray,
    weights: np.ndarray,
    raw: Arrays,
    attributes: Mapping[str, object],
) -> np.ndarray:
    graph = Graph.new("g")
    up, down = mixture.weights()
    values = []
    for name in (*(f"up_{one}" for one in up), *(f"down_{one}" for one in down)):
        array = raw[name]
        dtype = next(key for key, kind in RAW_DTYPE.items() if kind == array.dtype and key in ("F32", "BF16", "U8"))
        leaf = Canonical(name, dtype, array.shape, Copied(name), group=name)
        values.append(graph.weight(name, graph.store(leaf)))
    given_inputs = [
        graph.input(name, kind, array.shape)
        for name, kind, array in (("x", "F32", x), ("experts", "I64", experts), ("weights", "F32", weights))
    ]
    y = graph.build("layer.0").llmc("MoE", *given_inputs, *values, overload=mixture.overload, **attributes)

    def read(value: Any, expert: int) -> np.ndarray:
        expr = graph.expr(value)
        assert isinstance(expr, Stored)
        return raw[expr.name][expert]

    node = y.producer()
    assert node is not None
    return mixture_result(graph, node, x, experts, weights, read)


def test_no_expert_here_gives_zeros() -> None:
    mixture = Mixture("none", "none", "silu", part=True)
    stack = {"up": np.ones((2, 4, 8), np.float32), "down": np.ones((2, 8, 2), np.float32)}
    x, weights = np.ones((1, 2, 8), np.float32), np.ones((1, 2, 1), np.float32)
    (y,) = run_operator(
        "MoE",
        mixture.overload,
        {"x": x, "experts": np.array([[[0], [5]]], np.int64), "weights": weights, **stack},
        ["y"],
        start=2,
    )
    assert y.shape == x.shape and not y.any()


@given(
    st.sampled_from(["none", *FORMATS]),
    st.sampled_from(["none", *FORMATS]),
    st.sampled_from(["silu", "gelu_pytorch_tanh", LIMITED]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_an_overload_says_all_of_a_mixture(up: str, down: str, act: str, bias: bool, scaled: bool, part: bool) -> None:
    mixture = Mixture(up, down, act, bias, scaled, part)
    assert Mixture.of(mixture.overload) == mixture


@pytest.mark.parametrize("overload", ["int5__int4__silu", "int4__int4", "int4__int4__silu__other", "silu"])
def test_another_overload_is_no_mixture(overload: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        Mixture.of(overload)


def test_an_inlined_definition_has_the_same_numbers() -> None:
    graph = Graph.new("g")
    logits = graph.input("logits", "F32", [4, 12])
    bias = graph.input("bias", "F32", [12])
    b = graph.build("layer.0")
    overload = route_overload(SIGMOID, biased=True, grouped=True, normed=True)
    attributes = {"k": 3, "factor": 2.5, "least": 1e-20, "groups": 4, "kept": 2, "best": 2}
    whole = b.llmc("Route", logits, bias, overload=overload, outputs=2, **attributes)
    parts = inlined(b, whole[0].producer())
    graph.body.outputs.extend([*whole, *parts])
    for value, name in zip(graph.body.outputs, ("e", "w", "e2", "w2"), strict=True):
        value.name = name
    random = np.random.default_rng(0)
    feeds = {"logits": random.normal(size=(4, 12)), "bias": random.normal(size=12)}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    proto = graph.to_proto()
    found: Any = ort.InferenceSession(proto.SerializeToString(), options).run(
        None, {name: array.astype(np.float32) for name, array in feeds.items()}
    )
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])
    assert not [node for node in graph.nodes if node.domain == DOMAIN and node.op_type != "Route"]
