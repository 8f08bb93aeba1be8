"""What a router is, its reference in torch, and its cases and calls: all kinds, and the routers of known models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ...call import Case, KernelCall, Operand
from ..linear.cases import torch_dtype


@dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighed: fields are the attributes of `Route` (`passes/graph/experts.py`)."""

    kind: str
    normed: bool = False
    least: float = 0.0
    factor: float = 1.0
    groups: int = 1
    kept: int = 1
    best: int = 1
    jitter: float = 0.0


def chosen_experts(
    logits: torch.Tensor,
    chosen: int,
    routing: Routing,
    bias: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference of `route` in f64: (experts, weights), both [tokens, k]."""
    exact = logits.double()
    if routing.kind == "sparsemixer":
        return _sparsemixer(exact, routing.jitter)
    scores = {"softmax": exact.softmax(dim=1), "sigmoid": exact.sigmoid(), "chosen": exact}[routing.kind]
    rank = exact if bias is None and routing.groups == 1 else scores
    rank = rank if bias is None else scores + bias.double()
    if routing.groups > 1:
        parts = rank.unflatten(1, (routing.groups, -1))
        sums = parts.topk(routing.best, dim=2).values.sum(dim=2)
        kept = sums.sort(dim=1, descending=True, stable=True).indices[:, : routing.kept]
        shut = torch.ones_like(sums, dtype=torch.bool).scatter(1, kept, False)
        rank = parts.masked_fill(shut[:, :, None], float("-inf")).flatten(1)
    experts = rank.sort(dim=1, descending=True, stable=True).indices[:, :chosen]
    weights = scores.gather(1, experts)
    if routing.kind == "chosen":
        weights = weights.softmax(dim=1)
    if routing.normed:
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=routing.least)
    weights = weights * routing.factor
    return experts, weights if scales is None else weights * scales.double()[experts]


def _sparsemixer(logits: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two experts, one after the other: Phi 3.5 MoE, arXiv 2409.12136."""
    rest, found = logits, []
    for _ in range(2):
        best, expert = rest.max(dim=1, keepdim=True)
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * jitter
        weight = rest.masked_fill(far, float("-inf")).softmax(dim=1).gather(1, expert)
        rest = rest.scatter(1, expert, float("-inf"))
        found.append((expert, weight))
    experts, weights = (torch.cat(one, dim=1) for one in zip(*found, strict=True))
    return experts, weights


def _call(
    build: Callable[..., KernelCall],
    count: int,
    chosen: int,
    dtype: str,
    routing: Routing,
    bias: str | None,
    scales: str | None = None,
) -> KernelCall:
    return build(
        Operand("logits", dtype, ("tokens", count)),
        Operand("experts", "i32", ("tokens", chosen)),
        Operand("weights", "f32", ("tokens", chosen)),
        routing,
        **{name: Operand(name, one, (count,)) for name, one in (("bias", bias), ("scales", scales)) if one},
    )


SPECS: tuple[tuple[int, int, int, str, Routing, str | None, str | None], ...] = (
    (1, 8, 2, "f32", Routing("softmax", normed=True), None, None),
    (33, 5, 1, "f32", Routing("softmax"), None, None),
    (33, 32, 4, "f16", Routing("softmax", normed=True), "f32", None),
    (5, 512, 10, "f32", Routing("softmax", normed=True), None, None),
    (5, 160, 6, "f32", Routing("softmax", factor=16.0, groups=8, kept=3), None, None),
    (17, 256, 8, "f32", Routing("sigmoid", True, 1e-20, 2.5, groups=8, kept=4, best=2), "f32", None),
    (9, 18, 3, "f32", Routing("sigmoid", True, 1e-20, groups=3, kept=2, best=2), "bf16", None),
    (3, 6, 2, "f32", Routing("sigmoid", True, 4.0), None, None),
    (300, 4, 4, "bf16", Routing("sigmoid", factor=0.5), None, None),
    (9, 128, 1, "f32", Routing("sigmoid"), None, None),
    (33, 32, 4, "f32", Routing("chosen"), None, None),
    (3, 40, 16, "bf16", Routing("chosen"), "f32", None),
    (33, 128, 8, "f32", Routing("softmax", normed=True), None, "bf16"),
    (5, 6, 2, "f32", Routing("sigmoid", factor=2.0), "f32", "f32"),
    (65, 16, 2, "f32", Routing("sparsemixer", jitter=0.01), None, None),
    (65, 5, 2, "f32", Routing("sparsemixer", jitter=0.4), None, None),
)
"""Tokens, experts, chosen, dtypes of logits, bias and scales; of Qwen 3's shapes, DeepSeek's, Llama 4's, GPT-OSS's."""


def cases(build: Callable[..., KernelCall]) -> Iterator[Case]:
    """Every spec, with a row of equal logits; and rows of numbers that are not finite."""
    random = torch.Generator().manual_seed(3)
    for tokens, count, chosen, dtype, routing, bias, scales in SPECS:
        logits = (torch.randn(tokens, count, generator=random) * 2).to(torch_dtype(dtype))
        logits[0] = 1.0
        inputs = {"logits": logits}
        for parameter, one in (("bias", bias), ("scales", scales)):
            if one is not None:
                inputs[parameter] = torch.randn(count, generator=random).to(torch_dtype(one))
        call = _call(build, count, chosen, dtype, routing, bias, scales)
        experts, weights = chosen_experts(logits, chosen, routing, inputs.get("bias"), inputs.get("scales"))
        name = f"route-{routing.kind}-{dtype}-{tokens}x{count}-{chosen}"
        yield Case(name, call, inputs, {"tokens": tokens}, {"experts": experts, "weights": weights}, 1e-6)
    yield from _wild(build)


def _wild(build: Callable[..., KernelCall]) -> Iterator[Case]:
    """Experts are different and in range, whatever the logits are; a group with NaN among its best is the last."""
    wild = torch.full((4, 6), float("nan"))
    wild[1, 3], wild[2], wild[3] = float("inf"), float("-inf"), torch.tensor([-1e30, 90.0, 100.0, 100.0, -0.0, -1e30])
    expected = torch.tensor([[0, 1, 2], [3, 0, 1], [0, 1, 2], [2, 3, 1]])
    grouped = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 1, 0]])
    for name, routing, experts in (
        ("sigmoid", Routing("sigmoid"), expected),
        ("softmax", Routing("softmax", normed=True), expected),
        ("chosen", Routing("chosen"), expected),
        ("sparsemixer", Routing("sparsemixer", jitter=0.01), expected[:, :2]),
        ("groups", Routing("chosen", groups=2, best=2), grouped),
    ):
        call = _call(build, 6, experts.shape[1], "f32", routing, None)
        yield Case(f"route-wild-{name}", call, {"logits": wild}, {"tokens": 4}, {"experts": experts}, 0.0)


def calls(build: Callable[..., KernelCall]) -> Iterator[KernelCall]:
    """Of Mixtral, GPT-OSS, Qwen 3, Qwen 3 Next, DeepSeek V3, Gemma 4 and Phi 3.5 MoE."""
    yield _call(build, 8, 2, "f32", Routing("softmax", True), None)
    yield _call(build, 32, 4, "f32", Routing("chosen"), None)
    yield _call(build, 128, 8, "f32", Routing("softmax", True), None)
    yield _call(build, 512, 10, "f32", Routing("softmax", True), None)
    yield _call(build, 256, 8, "f32", Routing("sigmoid", True, 1e-20, 2.5, groups=8, kept=4, best=2), "f32")
    yield _call(build, 128, 8, "f32", Routing("softmax", True), None, "bf16")
    yield _call(build, 16, 2, "f32", Routing("sparsemixer", jitter=0.01), None)
