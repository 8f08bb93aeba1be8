"""Products of each head with its own part of the up projection: of queries with its keys' rows, of mixed latents with
its values' rows. So neither keys nor values of a head are ever stored.
"""

# Triton's type stubs reject plain numbers as constexprs, and its loops; branches are of constants.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Argument, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..attention.reference import ORDER as IN_ORDER
from ..attention.reference import in_order
from ..linear.cases import torch_dtype
from ..linear.dequantize import stored_column
from ..linear.parts.common import dot
from .shape import LEAST, LatentShape

MOST_TOKENS = 64
"""Most tokens of a program."""
COLUMNS, INNER = 128, 64
"""Columns of a program's result, and of the sum at a time."""


@triton.jit
def latent_product_kernel(
    x,
    lse,
    weight,
    positions,
    factors,
    y,
    tokens,
    K: tl.constexpr,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    X_WIDTH: tl.constexpr,
    X_HEAD: tl.constexpr,
    Y_WIDTH: tl.constexpr,
    Y_HEAD: tl.constexpr,
    W_ROWS: tl.constexpr,
    W_FIRST: tl.constexpr,
    RANK: tl.constexpr,
    VALUES: tl.constexpr,
    SPLITS: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """x [tokens, X_WIDTH], of head h the K columns from h * X_HEAD on, times W [K, N] of the head -> y [tokens,
    Y_WIDTH], the N columns from h * Y_HEAD on; times factors f32 [P] of positions i32 [tokens], if any.

    weight is [HEADS * W_ROWS, RANK]. W is the K rows from h * W_ROWS + W_FIRST on, and N is RANK; or with VALUES the
    transposed N rows, and K is RANK. More than one split: x is f32 [tokens, HEADS, SPLITS, K], and the sum over splits
    with weights of softmax of lse f32 [tokens, HEADS, SPLITS] (base 2) is what is multiplied.

    Grid: blocks of tokens, blocks of columns, heads.
    """
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(2)
    known = token < tokens
    row = token.to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first_row = (head * W_ROWS + W_FIRST).to(tl.int64)
    if SPLITS > 1:
        own = lse + (row * HEADS + head) * SPLITS
        highest = tl.full([BLOCK_M], -1e30, tl.float32)
        for split in range(SPLITS):
            highest = tl.maximum(highest, tl.load(own + split, known, -1e30))
        norm = tl.zeros([BLOCK_M], tl.float32)
        for split in range(SPLITS):
            sums = tl.load(own + split, known, -1e30)
            norm += tl.where(sums > -1e29, tl.exp2(sums - highest), 0.0)
        norm = tl.where(norm > 0.0, norm, 1.0)
    for start in range(0, K, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        inside = known[:, None] & (inner[None, :] < K)
        if SPLITS > 1:
            numbers = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
            for split in range(SPLITS):
                sums = tl.load(own + split, known, -1e30)
                share = tl.where(sums > -1e29, tl.exp2(sums - highest), 0.0) / norm
                at = ((row * HEADS + head) * SPLITS + split)[:, None] * K + inner[None, :]
                numbers += tl.load(x + at, inside, 0.0) * share[:, None]
            given = numbers.to(y.dtype.element_ty)
        else:
            given = tl.load(x + row[:, None] * X_WIDTH + head * X_HEAD + inner[None, :], inside, 0.0)
        within = (inner[:, None] < K) & (column[None, :] < N)
        if VALUES:
            at = (first_row + column[None, :]) * RANK + inner[:, None]
        else:
            at = (first_row + inner[:, None]) * RANK + column[None, :]
        own_weight = tl.load(weight + at, within, 0.0).to(given.dtype)
        acc = dot(given, own_weight, acc, EMULATE)
    if factors is not None:
        factor = tl.load(factors + tl.load(positions + token, known, 0), known, 0.0).to(tl.float32)
        acc = acc * factor[:, None]
    target = y + row[:, None] * Y_WIDTH + stored_column(head * Y_HEAD + column[None, :], ORDER)
    tl.store(target, acc.to(y.dtype.element_ty), known[:, None] & (column[None, :] < N))


KERNEL = Kernel("latent_product", latent_product_kernel)


def absorbed_queries(
    q: Operand,
    weight: Operand,
    query: Operand,
    shape: LatentShape,
    *,
    max_tokens: int,
    factors: Operand | None = None,
    positions: Operand | None = None,
) -> KernelCall:
    """The first N elements of the heads that q [tokens, >= A*(N+R)] begins with, times the rows of keys of weight
    [A*(N+V), L] -> the first L of each head of query [tokens, A, L+R]; times factors f32 [P] of positions, if any."""
    constants = {"K": shape.nope, "N": shape.rank, "X_WIDTH": q.shape[-1], "X_HEAD": shape.head}
    constants |= {"Y_WIDTH": shape.heads * shape.row, "Y_HEAD": shape.row, "W_FIRST": 0, "VALUES": False}
    given = {"x": q, "weight": weight, "y": query, "factors": factors, "positions": positions if factors else None}
    return _call(given, shape, constants, max_tokens)


def values(
    mixed: Operand,
    weight: Operand,
    y: Operand,
    shape: LatentShape,
    *,
    max_tokens: int,
    lse: Operand | None = None,
    order: int = 0,
) -> KernelCall:
    """mixed [tokens, A, L], or with lse f32 [tokens, A, splits] the parts f32 [tokens, A, splits, L], times the rows of
    values of weight [A*(N+V), L] -> y [tokens, A*V], whose columns lie in `order` (`linear/parts/fused.py`)."""
    constants = {"K": shape.rank, "N": shape.value, "X_WIDTH": shape.heads * shape.rank, "X_HEAD": shape.rank}
    constants |= {"Y_WIDTH": shape.heads * shape.value, "Y_HEAD": shape.value, "W_FIRST": shape.nope, "VALUES": True}
    constants |= {"ORDER": order, "SPLITS": 1 if lse is None else mixed.shape[2]}
    return _call({"x": mixed, "weight": weight, "y": y, "lse": lse}, shape, constants, max_tokens)


_ABSENT = ("lse", "factors", "positions")


def _call(
    given: dict[str, Operand | None], shape: LatentShape, constants: dict[str, object], max_tokens: int
) -> KernelCall:
    arguments: dict[str, Argument] = {name: one for name, one in given.items() if one is not None}
    n, k = constants["N"], constants["K"]
    weight, y = given["weight"], given["y"]
    assert isinstance(n, int) and isinstance(k, int) and weight is not None and y is not None
    splits = constants.get("SPLITS", 1)
    assert isinstance(splits, int)
    read = k * (y.item_bytes if splits == 1 else 4 * splits)
    block = min(max(next_power(max_tokens), LEAST), MOST_TOKENS)
    columns = min(max(next_power(n), LEAST), COLUMNS)
    fixed: dict[str, object] = {"SPLITS": 1, "ORDER": 0, **constants, "HEADS": shape.heads, "RANK": shape.rank}
    return KernelCall(
        KERNEL,
        {**arguments, "tokens": "tokens"},
        {
            **{name: None for name in _ABSENT if name not in arguments},
            **fixed,
            "W_ROWS": shape.nope + shape.value,
            "BLOCK_M": block,
            "BLOCK_N": columns,
            "BLOCK_K": min(max(next_power(k), LEAST), INNER),
        },
        (f"cdiv(tokens, {block})", -(-n // columns), shape.heads),
        writes=("y",),
        bytes=total(
            product("tokens", shape.heads, read + n * y.item_bytes), product(shape.heads, n * k, weight.item_bytes)
        ),
        operations=product("tokens", 2 * shape.heads * n * k),
        warps=4,
        stages=3,
    )


@dataclass(frozen=True)
class _Case:
    tokens: int
    shape: LatentShape
    weight: str = "bf16"
    act: str = "bf16"
    tempered: bool = False
    merged: int = 0
    """Columns of q behind the heads."""
    splits: int = 1
    ordered: bool = False

    @property
    def name(self) -> str:
        s = self.shape
        has = (
            "tempered" * self.tempered,
            "merged" * bool(self.merged),
            "ordered" * self.ordered,
            self.weight,
            self.act,
        )
        return "-".join(filter(None, (f"{self.tokens}x{s.heads}-{s.nope}-{s.rank}-{s.value}", f"{self.splits}", *has)))


_SMALL, _ODD = LatentShape(3, 16, 8, 32, 64), LatentShape(2, 24, 8, 20, 48)


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(3)
    for one in (_Case(1, _SMALL), _Case(5, _ODD, "f32", "f16"), _Case(70, _SMALL, tempered=True, merged=40)):
        yield _queries_case(random, one)
    for one in (
        _Case(3, _SMALL),
        _Case(66, _ODD, "f32", "f16"),
        _Case(5, _SMALL, splits=4),
        _Case(2, _ODD, splits=2, act="f16"),
        _Case(3, LatentShape(4, 16, 8, 32, 64), ordered=True),
    ):
        yield _values_case(random, one)


def _weight(random: torch.Generator, one: _Case) -> torch.Tensor:
    rows = one.shape.heads * (one.shape.nope + one.shape.value)
    return torch.randn(rows, one.shape.rank, generator=random).to(torch_dtype(one.weight))


def _queries_case(random: torch.Generator, one: _Case) -> Case:
    shape, act = one.shape, torch_dtype(one.act)
    q = torch.randn(one.tokens, shape.heads * shape.head + one.merged, generator=random).to(act)
    weight, query = _weight(random, one), torch.randn(one.tokens, shape.heads, shape.row, generator=random).to(act)
    positions = torch.randperm(one.tokens, generator=random).to(torch.int32)
    factors = torch.rand(one.tokens, 1, generator=random) + 0.5
    heads = q[:, : shape.heads * shape.head].float().reshape(one.tokens, shape.heads, -1)[..., : shape.nope]
    keys = weight.float().reshape(shape.heads, -1, shape.rank)[:, : shape.nope]
    made = torch.einsum("tan,anl->tal", heads, keys)
    if one.tempered:
        made = made * factors[positions.long()][..., None]
    call = absorbed_queries(
        Operand("q", one.act, ("tokens", q.shape[1])),
        Operand("weight", one.weight, tuple(weight.shape)),
        Operand("query", one.act, ("tokens", shape.heads, shape.row)),
        shape,
        max_tokens=one.tokens,
        factors=Operand("factors", "f32", (one.tokens, 1)) if one.tempered else None,
        positions=Operand("positions", "i32", ("tokens",)),
    )
    inputs = {"q": q, "weight": weight, "query": query}
    inputs |= {"factors": factors, "positions": positions} if one.tempered else {}
    expected = torch.cat([made, query[..., shape.rank :].float()], dim=-1)  # the turned part stays as it is
    return Case(f"queries-{one.name}", call, inputs, {"tokens": one.tokens}, {"query": expected}, ROUNDING[one.act])


def _values_case(random: torch.Generator, one: _Case) -> Case:
    shape, act = one.shape, torch_dtype(one.act)
    weight, lead = _weight(random, one), (one.tokens, shape.heads)
    rows = weight.float().reshape(shape.heads, -1, shape.rank)[:, shape.nope :]
    given = Operand("mixed", one.act, ("tokens", shape.heads, shape.rank))
    if one.splits > 1:
        given = Operand("mixed", "f32", ("tokens", shape.heads, one.splits, shape.rank))
        mixed = torch.randn(*lead, one.splits, shape.rank, generator=random)
        lse = torch.randn(*lead, one.splits, generator=random) * 4
        lse[0, 0, -1] = -1e30  # a split without positions
        lse[-1, -1] = -1e30  # a sequence without any
        mixed[0, 0, -1] = mixed[-1, -1] = 0.0
        share = (lse * torch.log(torch.tensor(2.0))).softmax(-1)
        whole = torch.einsum("tasl,tas->tal", mixed, share)
        inputs = {"mixed": mixed, "lse": lse, "weight": weight}
    else:
        mixed = torch.randn(*lead, shape.rank, generator=random).to(act)
        inputs, whole = {"mixed": mixed, "weight": weight}, mixed.float()
    call = values(
        given,
        Operand("weight", one.weight, tuple(weight.shape)),
        Operand("y", one.act, ("tokens", shape.heads * shape.value)),
        shape,
        max_tokens=one.tokens,
        lse=Operand("lse", "f32", ("tokens", shape.heads, one.splits)) if one.splits > 1 else None,
        order=IN_ORDER if one.ordered else 0,
    )
    made = torch.einsum("tal,avl->tav", whole, rows).reshape(one.tokens, -1)
    expected = {"y": in_order(made) if one.ordered else made}
    tolerance = 2 * ROUNDING[one.act] if one.splits > 1 else ROUNDING[one.act]  # the sum of parts is rounded too
    return Case(f"values-{one.name}", call, inputs, {"tokens": one.tokens}, expected, tolerance)


def _calls(sm: int) -> Iterator[KernelCall]:
    for heads in (16, 128):
        shape = LatentShape(heads, 128, 64, 128, 512)
        weight = Operand("weight", "bf16", (heads * 256, 512))
        q = Operand("q", "bf16", ("tokens", heads * shape.head))
        query = Operand("query", "bf16", ("tokens", heads, shape.row))
        y = Operand("y", "bf16", ("tokens", heads * shape.value))
        for tokens in (1, 2048):
            yield absorbed_queries(q, weight, query, shape, max_tokens=tokens)
            mixed = Operand("mixed", "bf16", ("tokens", heads, shape.rank))
            yield values(mixed, weight, y, shape, max_tokens=tokens)
        parts = Operand("mixed", "f32", ("tokens", heads, 32, shape.rank))
        yield values(parts, weight, y, shape, max_tokens=1, lse=Operand("lse", "f32", ("tokens", heads, 32)))


SUITE = Suite((KERNEL,), _cases, _calls)
