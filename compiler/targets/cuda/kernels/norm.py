"""RMSNorm, with or without a residual sum before it, and the selection of rows: one program per token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import triton
import triton.language as tl

from .....quantize.activations import GROUP, quantize_activations
from ..call import ROUNDING, Argument, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from .fp4 import MINIMUM_SM as FP4_SM
from .fp4 import group_of, store_groups
from .fp8 import LARGEST, LEAST, MINIMUM_SM, scale_of, to_e4m3
from .linear.dequantize import stored_column
from .linear.parts.fused import SQUARES
from .quantize_fp4 import narrow


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    y,
    scales,
    sums,
    squares,
    tokens,
    WIDTH: tl.constexpr,
    EPSILON: tl.constexpr,
    ORDER: tl.constexpr,
    PARTS: tl.constexpr,
    POWER: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """x and residual [tokens, WIDTH], weight [WIDTH] -> sums = x + residual, y = RMSNorm(x + residual) * weight.

    Zhang and Sennrich, "Root mean square layer normalization" (2019). Without residual, sums is not written.
    With scales f32 [tokens], y is u8: E4M3 codes of the result / scales. With GROUP, y u8 [tokens, WIDTH / 2] and
    scales u8 [tokens, WIDTH / GROUP] are its E2M1 codes. With squares f32 [PARTS, tokens], y is x * weight, and the sum
    of the squares of x is left as the first of PARTS sums (`linear/parts/fused.py`). The columns of y lie in the order
    of `stored_column`.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = token * WIDTH + column
    number = tl.load(x + at, inside, 0.0).to(tl.float32)
    if residual is not None:
        number += tl.load(residual + at, inside, 0.0).to(tl.float32)
        tl.store(sums + at, number.to(sums.dtype.element_ty), inside)
    total = tl.sum(number * number, axis=0)
    factor = tl.load(weight + column, inside, 0.0).to(tl.float32)
    target = token * WIDTH + stored_column(column, ORDER)
    if squares is not None:
        part = tl.arange(0, POWER)
        tl.store(squares + part * tokens + token, tl.where(part == 0, total, 0.0), part < PARTS)
        number = number * factor
    else:
        number = number * tl.rsqrt(total / WIDTH + EPSILON) * factor
    if GROUP is not None:
        row = token + tl.arange(0, 1)
        store_groups(number[None, :], y, scales, row, row >= 0, 0, WIDTH, GROUP)
    elif scales is not None:
        whole = scale_of(tl.max(tl.abs(number), axis=0))
        tl.store(scales + token, whole)
        tl.store(y + target, to_e4m3(number, whole), inside)
    else:
        tl.store(y + target, number.to(y.dtype.element_ty), inside)


@triton.jit
def gather_kernel(x, rows, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x [tokens, WIDTH] at rows i32 [rows] -> y [rows, WIDTH]; row -1 gives zeros."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    known = column < tl.where(row >= 0, WIDTH, 0)
    number = tl.load(x + row * WIDTH + column, known, 0.0)
    tl.store(y + index * WIDTH + column, number, inside)


NORM = Kernel("rms_norm", rms_norm_kernel)
NORM_FP8 = Kernel("rms_norm_fp8", rms_norm_kernel, MINIMUM_SM)
NORM_FP4 = Kernel("rms_norm_fp4", rms_norm_kernel, FP4_SM)
GATHER = Kernel("gather_rows", gather_kernel)


def rms_norm(
    x: Operand,
    weight: Operand,
    y: Operand,
    *,
    epsilon: float,
    scales: Operand | None = None,
    squares: Operand | None = None,
    order: int = 0,
) -> KernelCall:
    """x [tokens or rows, H] -> y of the same shape; H at most 16384.

    With scales f32 [tokens or rows], y is u8: the codes that `quantize_activations` would give for the f32 result. With
    scales u8 [tokens or rows, H / group], y is u8 [tokens or rows, H / 2]: those of `quantize_fp4`. With squares f32
    [cdiv(H, 32), tokens or rows], y lacks the division by the root mean square: a linear does it. For order see
    `linear/parts/fused.py`.
    """
    return _norm({"x": x, "weight": weight, "y": y}, epsilon, order, {"scales": scales, "squares": squares})


def add_rms_norm(
    x: Operand,
    residual: Operand,
    weight: Operand,
    y: Operand,
    sums: Operand,
    *,
    epsilon: float,
    scales: Operand | None = None,
    order: int = 0,
) -> KernelCall:
    """x, residual [tokens or rows, H] -> sums = x + residual, y = RMSNorm(sums); for the rest see `rms_norm`."""
    given = {"x": x, "residual": residual, "weight": weight, "y": y, "sums": sums}
    return _norm(given, epsilon, order, {"scales": scales})


def _norm(
    given: Mapping[str, Operand], epsilon: float, order: int, optional: Mapping[str, Operand | None]
) -> KernelCall:
    tokens, width = given["x"].shape
    assert isinstance(width, int)
    block = next_power(width)
    arguments: dict[str, Argument] = {**given, **{name: one for name, one in optional.items() if one is not None}}
    moved = total(*(one.bytes for one in arguments.values() if isinstance(one, Operand)))
    if "squares" in arguments:
        arguments["tokens"] = str(tokens)
    count = -(-width // SQUARES)
    parts = {"PARTS": count, "POWER": next_power(count)}
    absent = dict.fromkeys(
        name for name in ("residual", "scales", "sums", "squares", "tokens") if name not in arguments
    )
    group = group_of(optional["scales"], width)
    return KernelCall(
        NORM if "scales" not in arguments else NORM_FP4 if group else NORM_FP8,
        arguments,
        {**absent, "WIDTH": width, "EPSILON": epsilon, "ORDER": order, **parts, "BLOCK": block, "GROUP": group},
        (tokens,),
        writes=tuple(name for name in ("y", "scales", "sums", "squares") if name in arguments),
        bytes=moved,
        operations=product(tokens, 5 * width),
        warps=min(max(block // 512, 1), 16),
    )


def gather_rows(x: Operand, rows: Operand, y: Operand) -> KernelCall:
    """x [tokens, H] at rows i32 [R] -> y [R, H]."""
    count, width = y.shape
    assert isinstance(width, int)
    block = next_power(width)
    return KernelCall(
        GATHER,
        {"x": x, "rows": rows, "y": y},
        {"WIDTH": width, "BLOCK": block},
        (count,),
        writes=("y",),
        bytes=total(y.bytes, y.bytes, rows.bytes),
        operations=0,
        warps=min(max(block // 512, 1), 16),
    )


def _cases() -> Iterator[Case]:
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    random = torch.Generator().manual_seed(2)
    for tokens, width, act, weights in ((1, 4096, "bf16", "bf16"), (33, 96, "f16", "f32"), (3, 1000, "bf16", "f32")):
        x, residual = (torch.randn(tokens, width, generator=random).to(kinds[act]) for _ in range(2))
        weight = torch.randn(width, generator=random).to(kinds[weights])
        shape = ("tokens", width)
        given = [Operand("x", act, shape), Operand("weight", weights, (width,)), Operand("y", act, shape)]
        added = x.float() + residual.float()
        normed = {
            name: torch.nn.functional.rms_norm(number, (width,), weight.float(), 1e-5)
            for name, number in (("x", x.float()), ("sum", added))
        }
        name, sizes = f"{tokens}x{width}-{act}-{weights}", {"tokens": tokens}
        yield Case(
            f"norm-{name}",
            rms_norm(*given, epsilon=1e-5),
            {"x": x, "weight": weight},
            sizes,
            {"y": normed["x"]},
            ROUNDING[act],
        )
        call = add_rms_norm(
            given[0], Operand("r", act, shape), given[1], given[2], Operand("s", act, shape), epsilon=1e-5
        )
        expected = {"y": normed["sum"], "s": added}
        yield Case(f"add-{name}", call, {"x": x, "r": residual, "weight": weight}, sizes, expected, ROUNDING[act])
    yield from _quantized_cases(random)
    yield _unfinished_case(random)
    x = torch.randn(5, 40, generator=random).to(torch.bfloat16)
    rows = torch.tensor([4, -1, 0], dtype=torch.int32)
    call = gather_rows(
        Operand("x", "bf16", ("tokens", 40)), Operand("rows", "i32", ("rows",)), Operand("y", "bf16", ("rows", 40))
    )
    expected = torch.stack([x[4], torch.zeros(40), x[0]])
    yield Case("gather", call, {"x": x, "rows": rows}, {"tokens": 5, "rows": 3}, {"y": expected}, 0.0)


def _unfinished_case(random: torch.Generator) -> Case:
    """x * weight in the order of a 4-bit weight, and the sum of squares as the first of eight numbers."""
    x, weight = (torch.randn(*shape, generator=random).to(torch.bfloat16) for shape in ((3, 256), (256,)))
    shape = ("tokens", 256)
    call = rms_norm(
        *(Operand("x", "bf16", shape), Operand("weight", "bf16", (256,)), Operand("y", "bf16", shape)),
        epsilon=1e-5,
        squares=Operand("squares", "f32", (8, "tokens")),
        order=8,
    )
    ordered = (x.float() * weight.float()).reshape(3, 2, 4, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(3, 256)
    squares = torch.zeros(8, 3)
    squares[0] = x.float().square().sum(1)
    expected = {"y": ordered, "squares": squares}
    return Case("norm-unfinished", call, {"x": x, "weight": weight}, {"tokens": 3}, expected, ROUNDING["bf16"])


def _quantized_cases(random: torch.Generator) -> Iterator[Case]:
    """The written code is the E4M3 number nearest to the norm, within half a step."""
    tokens, width = 3, 200
    shape = ("tokens", width)
    x, residual = (torch.randn(tokens, width, generator=random).to(torch.bfloat16) for _ in range(2))
    x[0] = residual[0] = 0
    weight = torch.randn(width, generator=random)
    y, scales = Operand("y", "u8", shape), Operand("scales", "f32", ("tokens",))
    added = x.float() + residual.float()
    of_x, of_weight = Operand("x", "bf16", shape), Operand("weight", "f32", (width,))
    call = rms_norm(of_x, of_weight, y, epsilon=1e-5, scales=scales)
    both = add_rms_norm(
        *(of_x, Operand("r", "bf16", shape), of_weight, y, Operand("s", "bf16", shape)), epsilon=1e-5, scales=scales
    )
    yield from _fp4_cases(x, residual, weight)
    for name, made, number, extra in (
        ("norm-fp8", call, x.float(), {}),
        ("add-fp8", both, added, {"s": added.to(torch.bfloat16)}),
    ):
        normed = torch.nn.functional.rms_norm(number, (width,), weight, 1e-5)
        scale = normed.abs().amax(1).clamp(min=LEAST) / LARGEST
        codes = (normed / scale[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        expected = {"y": codes, "scales": scale, **extra}
        # Neighbours in E4M3 are neighbours as bits: float32 rounding may move a code by 1 of 254.
        inputs = {"x": x, "weight": weight} | ({"r": residual} if extra else {})
        yield Case(name, made, inputs, {"tokens": tokens}, expected, 2**-7)


def _fp4_cases(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Iterator[Case]:
    """x and residual bf16 [tokens, 200], of which the first 160 columns are normed."""
    x, residual, weight = (one[..., :160].contiguous() for one in (x, residual, weight))
    tokens, width = x.shape
    shape, added = ("tokens", width), x.float() + residual.float()
    normed = torch.nn.functional.rms_norm(added, (width,), weight, 1e-5)
    for format in GROUP:
        codes, scales = quantize_activations(normed, format)
        given = Operand("x", "bf16", shape), Operand("r", "bf16", shape), Operand("weight", "f32", (width,))
        sums, (y, of_y) = Operand("s", "bf16", shape), narrow(width, format)
        call = add_rms_norm(*given, y, sums, epsilon=1e-5, scales=of_y)
        expected = {"codes": codes, "scales": scales, "s": added.to(torch.bfloat16)}
        # Float32 rounding may move a code to its neighbour, and with it one of two in a byte.
        yield Case(
            f"add-{format}", call, {"x": x, "r": residual, "weight": weight}, {"tokens": tokens}, expected, 2**-7
        )


def _calls(sm: int) -> Iterator[KernelCall]:
    shape = ("tokens", 4096)
    x, weight, y = Operand("x", "bf16", shape), Operand("weight", "bf16", (4096,)), Operand("y", "bf16", shape)
    yield rms_norm(x, weight, y, epsilon=1e-5)
    squares = Operand("squares", "f32", (4096 // SQUARES, "tokens"))
    yield rms_norm(x, weight, y, epsilon=1e-5, squares=squares, order=8)
    yield add_rms_norm(x, Operand("r", "bf16", shape), weight, y, Operand("s", "bf16", shape), epsilon=1e-5)
    yield gather_rows(x, Operand("rows", "i32", ("rows",)), Operand("y", "bf16", ("rows", 4096)))
    if sm >= MINIMUM_SM:
        coded, scales = Operand("y", "u8", shape), Operand("scales", "f32", ("tokens",))
        yield rms_norm(x, weight, coded, epsilon=1e-5, scales=scales)
    if sm >= FP4_SM:
        for format in GROUP:
            coded, scales = narrow(4096, format)
            yield add_rms_norm(
                x, Operand("r", "bf16", shape), weight, coded, Operand("s", "bf16", shape), epsilon=1e-5, scales=scales
            )


SUITE = Suite((NORM, NORM_FP8, NORM_FP4, GATHER), _cases, _calls)
