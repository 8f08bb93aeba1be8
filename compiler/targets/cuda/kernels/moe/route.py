"""Routing of mixture-of-experts layers: the experts of each token, and their weights."""
# Triton's type stubs reject Python values as constants, and type reductions as if they might be tuples.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..linear.cases import torch_dtype
from ..sampling.candidates import ordered

MAX_EXPERTS, MAX_CHOSEN = 256, 8
SCORES = ("softmax", "sigmoid")
SCORES_OF_PROGRAM = 1024
"""Scores that a program of `route` processes."""


@triton.jit
def route_kernel(
    logits,
    bias,
    experts,
    weights,
    tokens,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SCORE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """logits [tokens, EXPERTS] -> experts i32 and weights f32 [tokens, CHOSEN], the highest first; see `route`.

    All logits, even NaN, give CHOSEN different experts in range, because later kernels use them as addresses.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, COLUMNS)
    slot = tl.arange(0, SLOTS)
    inside = (token[:, None] < tokens) & (column[None, :] < EXPERTS)
    logit = tl.load(logits + token[:, None].to(tl.int64) * EXPERTS + column[None, :], inside, 0.0).to(tl.float32)
    if SCORE == "softmax":
        known = tl.where(column[None, :] < EXPERTS, logit, float("-inf"))
        score = tl.exp(known - tl.max(known, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    else:
        score = 1.0 / (1.0 + tl.exp(-logit))
    # Different logits may round to equal scores, so without a bias experts are ranked by logits.
    rank = logit
    if bias is not None:
        rank = score + tl.load(bias + column, column < EXPERTS, 0.0).to(tl.float32)[None, :]
    rank = tl.where(rank == rank, rank, float("-inf"))
    # Columns past the end or already chosen get 0, which is below the order of every number.
    key = tl.where(column[None, :] < EXPERTS, ordered(rank), 0)
    expert = tl.zeros([BLOCK, SLOTS], tl.int32)
    weight = tl.zeros([BLOCK, SLOTS], tl.float32)
    for turn in tl.static_range(CHOSEN):
        best = tl.argmax(key, axis=1, tie_break_left=True)
        hit = column[None, :] == best[:, None]
        key = tl.where(hit, 0, key)
        expert = tl.where(slot[None, :] == turn, best[:, None], expert)
        weight = tl.where(slot[None, :] == turn, tl.sum(tl.where(hit, score, 0.0), axis=1)[:, None], weight)
    if RENORMALIZE:
        weight = weight / (tl.sum(weight, axis=1)[:, None] + 1e-20)
    weight *= FACTOR
    address = token[:, None].to(tl.int64) * CHOSEN + slot[None, :]
    wanted = (token[:, None] < tokens) & (slot[None, :] < CHOSEN)
    tl.store(experts + address, expert, wanted)
    tl.store(weights + address, weight, wanted)


KERNEL = Kernel("moe_route", route_kernel)


def check_experts(experts: int, chosen: int) -> None:
    if experts > MAX_EXPERTS or not 1 <= chosen <= min(MAX_CHOSEN, experts):
        raise ValueError(f"{chosen} of {experts} experts: at most {MAX_CHOSEN} of at most {MAX_EXPERTS}")


def route(
    logits: Operand,
    experts: Operand,
    weights: Operand,
    *,
    score: str,
    renormalize: bool = False,
    factor: float = 1.0,
    bias: Operand | None = None,
) -> KernelCall:
    """logits [tokens, E] -> the k highest experts i32 [tokens, k] (of equals the lower id), weights f32 [tokens, k].

    `score` is "softmax" over all experts or "sigmoid". With `renormalize` the k weights sum to 1 (for softmax this is
    the softmax of the k logits); they are then multiplied by `factor`. `bias` [E] is added to the scores for the choice
    only (DeepSeek-AI, "DeepSeek-V3 technical report", 2024, section 2.1.2).

    Raises:
        ValueError: more than 256 experts, k not from 1 to min(8, E), or an unknown score.
    """
    tokens, count = logits.shape
    chosen = experts.shape[-1]
    assert isinstance(count, int) and isinstance(chosen, int)
    check_experts(count, chosen)
    if score not in SCORES:
        raise ValueError(f"route: score {score!r}, not one of {SCORES}")
    columns = next_power(count)
    block = max(1, SCORES_OF_PROGRAM // columns)
    arguments = {"logits": logits, "experts": experts, "weights": weights, "tokens": str(tokens)}
    return KernelCall(
        KERNEL,
        {**arguments, **({} if bias is None else {"bias": bias})},
        {
            **({"bias": None} if bias is None else {}),
            "EXPERTS": count,
            "CHOSEN": chosen,
            "SCORE": score,
            "RENORMALIZE": renormalize,
            "FACTOR": factor,
            "COLUMNS": columns,
            "SLOTS": next_power(chosen),
            "BLOCK": block,
        },
        (f"cdiv({tokens}, {block})",),
        writes=("experts", "weights"),
        bytes=total(*(o.bytes for o in (logits, experts, weights, bias) if o is not None)),
        operations=product(tokens, (5 + 2 * chosen) * count),
    )


def chosen_experts(
    logits: torch.Tensor, chosen: int, score: str, renormalize: bool, factor: float, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference of `route` in f64: (experts, weights), both [tokens, k]."""
    exact = logits.double()
    scores = exact.softmax(dim=1) if score == "softmax" else exact.sigmoid()
    rank = scores if bias is None else scores + bias.double()
    experts = rank.sort(dim=1, descending=True, stable=True).indices[:, :chosen]
    weights = scores.gather(1, experts)
    if renormalize:
        weights = weights / weights.sum(dim=1, keepdim=True)
    return experts, weights * factor


def _call(
    count: int, chosen: int, dtype: str, score: str, renormalize: bool, factor: float, bias: str | None
) -> KernelCall:
    return route(
        Operand("logits", dtype, ("tokens", count)),
        Operand("experts", "i32", ("tokens", chosen)),
        Operand("weights", "f32", ("tokens", chosen)),
        score=score,
        renormalize=renormalize,
        factor=factor,
        bias=None if bias is None else Operand("bias", bias, (count,)),
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(3)
    for tokens, count, chosen, dtype, score, renormalize, factor, bias in (
        (1, 8, 2, "bf16", "softmax", True, 1.0, None),
        (33, 5, 1, "f32", "softmax", False, 1.0, None),
        (33, 32, 4, "f16", "softmax", True, 1.0, "f32"),
        (17, 256, 8, "f32", "sigmoid", True, 2.5, "f32"),
        (300, 4, 4, "bf16", "sigmoid", False, 0.5, None),
    ):
        logits = (torch.randn(tokens, count, generator=random) * 2).to(torch_dtype(dtype))
        logits[0] = 1.0
        inputs = {"logits": logits}
        if bias is not None:
            inputs["bias"] = torch.randn(count, generator=random).to(torch_dtype(bias))
        call = _call(count, chosen, dtype, score, renormalize, factor, bias)
        experts, weights = chosen_experts(logits, chosen, score, renormalize, factor, inputs.get("bias"))
        name = f"route-{score}-{dtype}-{tokens}x{count}-{chosen}"
        yield Case(name, call, inputs, {"tokens": tokens}, {"experts": experts, "weights": weights}, 1e-6)
    wild = torch.full((4, 5), float("nan"))
    wild[1, 3], wild[2], wild[3] = float("inf"), float("-inf"), torch.tensor([-1e30, 90.0, 100.0, 100.0, -0.0])
    experts = torch.tensor([[0, 1, 2], [3, 0, 1], [0, 1, 2], [2, 3, 1]])
    call = _call(5, 3, "f32", "sigmoid", False, 1.0, None)
    yield Case("route-wild", call, {"logits": wild}, {"tokens": 4}, {"experts": experts}, 0.0)


def _calls(sm: int) -> Iterator[KernelCall]:
    yield _call(8, 2, "bf16", "softmax", True, 1.0, None)
    yield _call(32, 4, "bf16", "softmax", True, 1.0, None)
    yield _call(256, 8, "f32", "sigmoid", True, 2.5, "f32")


SUITE = Suite((KERNEL,), _cases, _calls)
